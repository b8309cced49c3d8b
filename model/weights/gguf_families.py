"""What GGUF calls the tensors and sizes of each family that is converted, and how it stores them. Data; no files.

Names follow llama.cpp's converter, which writes these files (gguf-py/gguf/constants.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.weights.safety import StoreError

Fields = Mapping[str, Any]
"""The file's metadata by key."""
Config = Mapping[str, Any]
"""What config.json will hold."""


class ConversionError(StoreError):
    """The GGUF file is of a kind that is not converted; the message names the key."""


@dataclass(frozen=True, slots=True)
class GGUFFamily:
    """One value of `general.architecture`."""

    name: str
    layer_tensors: Mapping[str, str]
    """The checkpoint's name of each tensor of a layer, by GGUF's."""
    config: Callable[[Fields], dict[str, Any]]
    """The keys of config.json that differ between families."""
    weight: Callable[[str, np.ndarray, Config], np.ndarray]
    """The weight of that name in a checkpoint, from GGUF's."""

    def checkpoint_name(self, name: str) -> str:
        """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.

        Raises:
            ConversionError: the family has no such tensor.
        """
        if name in _GLOBAL_TENSORS:
            return _GLOBAL_TENSORS[name]
        match name.split("."):
            case ["blk", layer, part, "weight" | "bias" as kind] if part in self.layer_tensors:
                return f"model.layers.{layer}.{self.layer_tensors[part]}.{kind}"
        raise ConversionError(f"tensor {name!r} does not belong to the {self.name} family")


_GLOBAL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _sizes(fields: Fields, prefix: str) -> dict[str, Any]:
    """What every family has.

    Raises:
        ConversionError: rotary embeddings are scaled or logits capped; a file without these keys has neither.
    """
    for key in fields:
        if key.startswith(f"{prefix}.rope.scaling.") or key.endswith("logit_softcapping"):
            raise ConversionError(f"{key}: scaled rotary embeddings and capped logits are not converted")
    num_heads = fields[f"{prefix}.attention.head_count"]
    return {
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields[f"{prefix}.embedding_length"],
        "intermediate_size": fields[f"{prefix}.feed_forward_length"],
        "num_hidden_layers": fields[f"{prefix}.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.get(f"{prefix}.attention.head_count_kv", num_heads),
        "max_position_embeddings": fields[f"{prefix}.context_length"],
        "rms_norm_eps": fields[f"{prefix}.attention.layer_norm_rms_epsilon"],
        "attention_bias": False,
    }


def _llama_config(fields: Fields) -> dict[str, Any]:
    sizes = _sizes(fields, "llama")
    return sizes | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": fields.get("llama.rope.dimension_count", sizes["hidden_size"] // sizes["num_attention_heads"]),
        "rope_theta": fields.get("llama.rope.freq_base", 10_000.0),
        "hidden_act": "silu",
        "mlp_bias": False,
    }


def _llama_weight(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    """GGUF interleaves the halves of each rotary pair; a checkpoint keeps the halves apart."""
    if ".q_proj." in name:
        return _split_rotary_halves(values, config["num_attention_heads"])
    if ".k_proj." in name:
        return _split_rotary_halves(values, config["num_key_value_heads"])
    return values


def _split_rotary_halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows [head, pair, half] → [head, half, pair], the order that rotate-half embedding expects."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


_GEMMA_27B_LAYERS = 62


def _gemma3_config(fields: Fields) -> dict[str, Any]:
    """What GGUF leaves out (window pattern, local rope, attention's scale) is as llama.cpp itself fills it in."""
    sizes, head_dim = _sizes(fields, "gemma3"), fields["gemma3.attention.key_length"]
    is_27b = sizes["num_hidden_layers"] == _GEMMA_27B_LAYERS
    return sizes | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": head_dim,
        "query_pre_attn_scalar": sizes["hidden_size"] // sizes["num_attention_heads"] if is_27b else head_dim,
        "rope_theta": fields.get("gemma3.rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": 10_000.0,
        "sliding_window": fields["gemma3.attention.sliding_window"],
        "sliding_window_pattern": 6,
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _gemma3_weight(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    """GGUF's norms hold the factor; a checkpoint holds what is added to one."""
    return values - np.float32(1) if name.endswith("norm.weight") else values


FAMILIES: Mapping[str, GGUFFamily] = {
    "llama": GGUFFamily(
        "Llama",
        _PROJECTIONS | {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
        _llama_config,
        _llama_weight,
    ),
    "gemma3": GGUFFamily(
        "Gemma 3",
        _PROJECTIONS
        | {
            "attn_norm": "input_layernorm",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _gemma3_config,
        _gemma3_weight,
    ),
}
"""By `general.architecture`."""


def family_of(fields: Fields) -> GGUFFamily:
    """Raises ConversionError: naming the architecture, and those that are converted."""
    architecture = str(fields.get("general.architecture"))
    if architecture not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConversionError(f"general.architecture {architecture!r} is not converted; known: {known}")
    return FAMILIES[architecture]
