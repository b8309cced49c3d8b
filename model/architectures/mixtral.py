"""Mixtral (Jiang et al., 2024): Llama whose every MLP is a mixture of experts."""

from __future__ import annotations

from model.architectures.blocks import (
    GroupedQueryAttention,
    PreNormLayer,
    check_activation,
    expert_numbers,
    make_experts,
    take_mlp,
)
from model.architectures.interface import Architecture, DecoderLayer, StageParts, Weights

_NAMES = ("w1", "w3", "w2")


def _layer(weights: Weights, index: int, stage_index: int, parts: StageParts) -> DecoderLayer:
    check_activation(parts, "silu")
    prefix = f"model.layers.{index}.block_sparse_moe"
    attention = GroupedQueryAttention(weights, index, stage_index, parts)
    experts = [take_mlp(weights, f"{prefix}.experts.{expert}", _NAMES) for expert in expert_numbers(parts)]
    mlp = make_experts((weights.pop(f"{prefix}.gate.weight"), None), experts, parts)
    return PreNormLayer(weights, index, attention, mlp, parts)


MIXTRAL = Architecture(build_layer=_layer)
