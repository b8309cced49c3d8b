"""Gemma 3, text (Gemma Team, 2025): windows in five layers of six, two ropes, norms on both sides of each block.

Norms multiply by 1 + weight, embeddings by sqrt(hidden size); the MLP's gate is a GELU.
"""

from __future__ import annotations

import math

from torch import Tensor

from model.architectures.blocks import GroupedQueryAttention, check_activation, make_mlp, take_mlp
from model.architectures.interface import Architecture, DecoderLayer, StageParts, Weights
from model.layers.mlp import Activation
from model.layers.norm import RMSNorm

_OFFSET = 1.0


class GemmaLayer:
    """residual += norm(attention(norm(residual))); residual += norm(mlp(norm(residual)))"""

    def __init__(self, weights: Weights, index: int, stage_index: int, parts: StageParts) -> None:
        check_activation(parts, "gelu_pytorch_tanh")
        prefix = f"model.layers.{index}"

        def norm(name: str, buffer: str) -> RMSNorm:
            weight = weights.pop(f"{prefix}.{name}_layernorm.weight") + _OFFSET
            return RMSNorm(weight, parts.config.rms_norm_eps, parts.workspace, buffer)

        self.before_attention, self.after_attention = norm("input", "normed"), norm("post_attention", "attended")
        self.before_mlp, self.after_mlp = norm("pre_feedforward", "normed"), norm("post_feedforward", "fed forward")
        self.attention = GroupedQueryAttention(weights, index, stage_index, parts, norm_offset=_OFFSET)
        self.mlp = make_mlp(take_mlp(weights, f"{prefix}.mlp"), parts, Activation("gelu_tanh"))

    def __call__(self, residual_TH: Tensor, delta_TH: Tensor | None, positions_T: Tensor) -> Tensor:
        attended_TH = self.after_attention(self.attention(self.before_attention(residual_TH, delta_TH), positions_T))
        return self.after_mlp(self.mlp(self.before_mlp(residual_TH, attended_TH)))


def _layer(weights: Weights, index: int, stage_index: int, parts: StageParts) -> DecoderLayer:
    return GemmaLayer(weights, index, stage_index, parts)


GEMMA3 = Architecture(
    build_layer=_layer, norm_offset=_OFFSET, embedding_scale=lambda config: math.sqrt(config.hidden_size)
)
