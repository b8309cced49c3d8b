"""What is varied in each family's tiny model, and every combination of it. Data; `tiny_families` writes the models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tests.support.tiny_families import YARN

Changes = dict[str, Any]

_TIED: Changes = {"tie_word_embeddings": True}
_UNTIED: Changes = {"tie_word_embeddings": False}
_BIAS: Changes = {"attention_bias": True}
_ODD: Changes = {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 12}
_ONE_KV: Changes = {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 10}
_WINDOW: Changes = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
OPTIONS: dict[str, dict[str, Changes]] = {
    "Llama": {
        "tied": _TIED,
        "biases": {"attention_bias": True, "mlp_bias": True},
        "odd heads": _ODD,
        "": {"rope_parameters": _LLAMA3},
    },
    "Qwen2": {
        "tied": _TIED,
        "odd heads": {"num_attention_heads": 3, "num_key_value_heads": 1},
        "window": _WINDOW,
        "": {},
    },
    "Qwen3": {"tied": _TIED, "biases": _BIAS, "one KV head": _ONE_KV, "window": _WINDOW, "": {}},
    "Qwen3Moe": {
        "tied": _TIED,
        "biases": _BIAS,
        "odd heads": _ODD,
        "window": {"use_sliding_window": True, "sliding_window": 5},
        "": {"norm_topk_prob": True, "mlp_only_layers": [1]},
    },
    "Mixtral": {"tied": _TIED, "odd heads": _ODD, "window": {"sliding_window": 8}, "": {}},
    "Gemma3": {
        "untied": _UNTIED,
        "biases": _BIAS,
        "odd heads": {"num_attention_heads": 3, "num_key_value_heads": 1},
        "all see all": {"sliding_window": 64},
        "": {"rope_parameters": _LONG_ROPE},
    },
    "GptOss": {
        "tied": _TIED,
        "no biases": {"attention_bias": False},
        "one KV head": {**_ONE_KV, "head_dim": 12},
        "all see all": {"sliding_window": 64},
        "": {},
    },
    "DeepseekV3": {
        "tied": _TIED,
        "odd heads": {"num_attention_heads": 5, "num_key_value_heads": 5},
        "": {
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
            "rope_interleave": False,
            "norm_topk_prob": False,
        },
    },
}
"""By family, what may be changed. "" has no switch of its own: it is on in every other variant, and where all is on."""


def variants() -> Iterator[tuple[str, str, Changes, bool]]:
    """(name, family, changes, whether it is in the small grid) of every combination; the small one has none and all."""
    for family, options in OPTIONS.items():
        switches = [name for name in options if name]
        for chosen in itertools.product((False, True), repeat=len(switches)):
            on = [name for name, is_on in zip(switches, chosen, strict=True) if is_on]
            changes: Changes = {}
            for name in [*on, ""] if len(on) % 2 or all(chosen) else on:
                changes |= options[name]
            yield f"{family}: {', '.join(on) or 'plain'}", family, changes, all(chosen) or not on
