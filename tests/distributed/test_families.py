"""Every family's logits are transformers' in float32, after a prompt and after each decoded token, however it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.parallel.context import ParallelContext
from model.parallel.dims import ParallelDims
from tests.support.passes import Passes
from tests.support.thread_ranks import run_threads
from tests.support.tiny_families import YARN, save_family

PROMPT = [int(token) for token in np.random.default_rng(3).integers(0, 131, 37)]
NUM_DECODED = 32
DENSE_CUTS = [
    ParallelDims(),
    ParallelDims(2),
    ParallelDims(3),
    ParallelDims(1, 2),
    ParallelDims(1, 3),
    ParallelDims(2, 2),
]
EXPERT_CUTS = [*DENSE_CUTS, ParallelDims(2, 1, 2), ParallelDims(4, 1, 2), ParallelDims(2, 2, 2), ParallelDims(3, 1, 3)]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2 tied, sliding": (
        "Qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {}),
    "qwen3 tied, biases, one KV head": (
        "Qwen3",
        {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 1, "head_dim": 10},
    ),
    "qwen3 moe": ("Qwen3Moe", {}),
    "qwen3 moe, normalised, some dense": (
        "Qwen3Moe",
        {"norm_topk_prob": True, "mlp_only_layers": [1], "tie_word_embeddings": True, "attention_bias": True},
    ),
    "mixtral": ("Mixtral", {}),
    "mixtral, sliding, odd heads": (
        "Mixtral",
        {"sliding_window": 8, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 12},
    ),
    "gemma3": ("Gemma3", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "gemma3 untied, biases, long rope": (
        "Gemma3",
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "num_key_value_heads": 1,
            "num_attention_heads": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gpt-oss": ("GptOss", {}),
    "gpt-oss without biases, tied": ("GptOss", {"attention_bias": False, "tie_word_embeddings": True, "head_dim": 12}),
    "deepseek v3": ("DeepseekV3", {}),
    "deepseek v3, direct queries, yarn": (
        "DeepseekV3",
        {
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
            "rope_interleave": False,
            "norm_topk_prob": False,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
        },
    ),
}


def trace(context: ParallelContext, directory: str, chunk: int) -> tuple[list[int], list[np.ndarray]]:
    """On any rank: a greedy answer, its prompt taken `chunk` tokens a pass, and this rank's logits of each."""
    passes = Passes.load(Path(directory), context)
    logits: list[np.ndarray] = []
    forward = passes.shard.stage.forward

    def recording(batch: Any) -> Any:
        result = forward(batch)
        if context.shard.is_last_stage and batch.sampling:
            logits.append(result.numpy().copy())
        return result

    passes.shard.stage.forward = recording  # type: ignore[method-assign]
    running = passes.add(PROMPT)
    while running.computed + chunk < len(PROMPT):
        passes.step([(running, chunk)])
    passes.decode([running], NUM_DECODED)
    return running.answer, logits


def expected_logits(reference: Any, answer: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits = reference(torch.tensor([PROMPT + answer[:-1]])).logits
    return logits[0, len(PROMPT) - 1 :].numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    reference = save_family(tmp_path, family, **changes)
    config = ModelConfig.from_checkpoint(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # ranks are threads here
    try:
        expected = None
        for dims in EXPERT_CUTS if config.experts else DENSE_CUTS:
            for chunk in (len(PROMPT), 7):
                results = run_threads(config, dims, trace, str(tmp_path), chunk)[dims.tp * (dims.pp - 1) :]
                answers = [answer for answer, _ in results]
                assert all(answer == answers[0] for answer in answers)
                found = np.concatenate([np.concatenate(logits) for _, logits in results], axis=1)
                if expected is None:
                    answer, expected = answers[0], expected_logits(reference, answers[0])
                assert answers[0] == answer == expected.argmax(-1).tolist()
                assert relative_error(found, expected) <= 1e-4, (dims, chunk)
    finally:
        torch.set_num_threads(threads)
