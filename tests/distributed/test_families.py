"""Every family's logits, of a prompt and of decoded tokens, are transformers' in float32, however the model is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import SUPPORTED_ARCHITECTURES, ModelConfig, UnsupportedModelError
from model.parallel.dims import ParallelDims
from model.registry import ARCHITECTURES
from model.weights.tables import TABLES
from tests.support.passes import Passes
from tests.support.tiny_families import YARN, save_family
from tests.support.traces import PROMPT, check_logits, relative_error

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


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    reference = save_family(tmp_path, family, **changes)
    has_experts = ModelConfig.from_checkpoint(tmp_path).experts is not None
    check_logits(tmp_path, reference, EXPERT_CUTS if has_experts else DENSE_CUTS, (len(PROMPT), 7))


def test_each_prompt_position_equals_transformers(tmp_path: Path) -> None:
    """One pass over every prefix of the prompt: rows of all lengths, windows that end inside and outside of them."""
    reference = save_family(
        tmp_path, "Gemma3", layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    passes = Passes.load(tmp_path)
    rows = [(passes.add(PROMPT[:length]), length) for length in range(1, len(PROMPT) + 1)]
    with torch.inference_mode():
        found = passes.shard.stage.forward(passes.batch(rows)).numpy()
        expected = reference(torch.tensor([PROMPT])).logits[0].numpy()
    assert relative_error(found, expected) <= 1e-4


def test_other_architectures_are_refused_by_name_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'FalconForCausalLM' is not served; supported: Llama.*DeepseekV3"):
        ModelConfig.from_dict({"architectures": ["FalconForCausalLM"]})
    assert set(ARCHITECTURES) == set(TABLES) == set(SUPPORTED_ARCHITECTURES)
