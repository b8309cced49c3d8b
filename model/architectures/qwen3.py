"""Qwen3 (Qwen Team, 2025): Llama with norms of query and key heads; its MoE form has experts in most layers."""

from __future__ import annotations

from model.architectures.blocks import (
    Block,
    GroupedQueryAttention,
    PreNormLayer,
    check_activation,
    expert_numbers,
    make_experts,
    make_mlp,
    take_mlp,
)
from model.architectures.interface import Architecture, DecoderLayer, StageParts, Weights


def _layer(weights: Weights, index: int, stage_index: int, parts: StageParts) -> DecoderLayer:
    check_activation(parts, "silu")
    prefix = f"model.layers.{index}.mlp"
    attention = GroupedQueryAttention(weights, index, stage_index, parts)
    mlp: Block
    if parts.config.is_sparse(index):
        experts = [take_mlp(weights, f"{prefix}.experts.{expert}") for expert in expert_numbers(parts)]
        mlp = make_experts((weights.pop(f"{prefix}.gate.weight"), None), experts, parts)
    else:
        mlp = make_mlp(take_mlp(weights, prefix), parts)
    return PreNormLayer(weights, index, attention, mlp, parts)


QWEN3 = QWEN3_MOE = Architecture(build_layer=_layer)
