"""Random checkpoints of every family, written by transformers: the reference that our families are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Qwen3Moe": {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
    "Mixtral": {"num_local_experts": 6},
    "Gemma3": {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7, "tie_word_embeddings": True},
    "GptOss": {
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 4,
        "sliding_window": 9,
        "rope_parameters": {**YARN, "truncate": False},
        "intermediate_size": 96,
        "hidden_size": 64,
    },
    "DeepseekV3": {
        "num_key_value_heads": 6,
        "q_lora_rank": 24,
        "kv_lora_rank": 20,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "first_k_dense_replace": 1,
    },
}
"""What each family's tiny model has besides `SIZES`, by the prefix of its classes in transformers."""
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}


def save_family(directory: Path, family: str, **changes: Any) -> Any:
    """A random checkpoint in `directory`, and the model; weights large enough that a wrong one changes logits."""
    torch.manual_seed(0)
    make_config = getattr(transformers, _CONFIGS.get(family, f"{family}Config"))
    config = make_config(**(SIZES | FAMILIES[family] | changes), attn_implementation="eager")
    reference = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    is_offset = family == "Gemma3"
    with torch.no_grad():
        for name, parameter in [*reference.named_parameters(), *reference.named_buffers()]:
            if name.endswith(("bias", "sinks")):
                parameter.normal_(0, 0.3)
            elif "norm" in name and is_offset:
                parameter.uniform_(-0.5, 0.5)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    reference.save_pretrained(directory)
    return reference
