"""Logits and greedy tokens of tiny random Llamas equal transformers', in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import ModelConfig, UnsupportedModelError
from model.layers.rotary import inverse_frequencies
from tests.support.passes import Passes, generate, one_rank
from tests.support.tiny_llama import save_tiny

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one head a group": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "one KV head": {"num_attention_heads": 5, "num_key_value_heads": 1, "hidden_size": 80},
    "wide heads, odd sizes": {"head_dim": 48, "hidden_size": 54, "intermediate_size": 77, "vocab_size": 211},
    "llama 3 rope": {"rope_parameters": LLAMA3_ROPE},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_the_reference(variant: str, tmp_path: Path) -> None:
    reference = save_tiny(tmp_path, **VARIANTS[variant])
    vocab = reference.config.vocab_size
    generator = np.random.default_rng(1)
    prompts = [generator.integers(0, vocab, length).tolist() for length in (1, 7, 16, 33, 130)]
    answers = generate(one_rank(tmp_path), str(tmp_path), prompts, 24, batch_rows=5)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        assert answer == logits.argmax(-1).tolist()


def test_logits_equal_the_reference(tmp_path: Path) -> None:
    reference = save_tiny(tmp_path, attention_bias=True)
    passes = Passes.load(tmp_path)
    running = passes.add(list(range(3, 290)))
    with torch.inference_mode():
        logits_SV = passes.shard.stage.forward(passes.batch([(running, 287)]))
        expected = reference(torch.tensor([running.tokens])).logits[0, -1]
    torch.testing.assert_close(logits_SV[0], expected, rtol=1e-4, atol=1e-4)


def test_unserved_options_are_refused_by_name(tmp_path: Path) -> None:
    save_tiny(tmp_path, hidden_act="gelu")
    with pytest.raises(UnsupportedModelError, match=r"hidden_act 'gelu'.*silu"):
        Passes.load(tmp_path)
    config = ModelConfig.from_checkpoint(tmp_path)
    dynamic = type(config.rope)(theta=1e4, scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(UnsupportedModelError, match=r"'dynamic'.*llama3"):
        inverse_frequencies(dynamic, 16)
