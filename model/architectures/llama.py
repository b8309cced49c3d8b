"""Llama (Touvron et al., 2023): pre-norm, rotary grouped-query attention, gated MLP. Qwen2.5 is one with QKV biases."""

from __future__ import annotations

from model.architectures.blocks import GroupedQueryAttention, PreNormLayer, check_activation, make_mlp, take_mlp
from model.architectures.interface import Architecture, DecoderLayer, StageParts, Weights


def _layer(weights: Weights, index: int, stage_index: int, parts: StageParts) -> DecoderLayer:
    check_activation(parts, "silu")
    attention = GroupedQueryAttention(weights, index, stage_index, parts)
    mlp = make_mlp(take_mlp(weights, f"model.layers.{index}.mlp"), parts)
    return PreNormLayer(weights, index, attention, mlp, parts)


LLAMA = QWEN2 = Architecture(build_layer=_layer)
