"""Llama (Touvron et al., 2023): pre-norm, rotary grouped-query attention, gated MLP. Knows one layer's equations.

Legend: T packed tokens, H hidden size, N = (query heads + 2 * KV heads) * head size on this rank.
"""

from __future__ import annotations

from torch import Tensor

from model.architectures.interface import Architecture, StageParts, Weights
from model.config import UnsupportedModelError
from model.layers.linear import GatedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from model.layers.norm import RMSNorm


class LlamaAttention:
    """x -> o(attention(rotate(qkv(x))))"""

    def __init__(self, weights: Weights, prefix: str, layer: int, parts: StageParts) -> None:
        names = [f"{prefix}.{part}_proj" for part in "qkv"]
        q, k, v = (weights.pop(f"{name}.weight") for name in names)
        q_bias, k_bias, v_bias = (weights.pop(f"{name}.bias", None) for name in names)
        self.qkv = QKVParallelLinear((q, k, v), (q_bias, k_bias, v_bias), parts.workspace)
        output, output_bias = weights.pop(f"{prefix}.o_proj.weight"), weights.pop(f"{prefix}.o_proj.bias", None)
        self.output = RowParallelLinear(output, output_bias, parts.context.tensor_group, parts.workspace)
        self._rotary, self._backend, self._layer = parts.rotary, parts.attention, layer
        heads = parts.context.shard.heads
        self._rotated_heads = len(heads.slots) + heads.kv_heads.size

    def __call__(self, x_TH: Tensor, positions_T: Tensor) -> Tensor:
        qkv_TN = self.qkv(x_TH)
        self._rotary(qkv_TN, positions_T, self._rotated_heads)
        return self.output(self._backend.attend(qkv_TN, self._layer))


class LlamaMLP:
    """x -> down(silu(gate(x)) * up(x))"""

    def __init__(self, weights: Weights, prefix: str, parts: StageParts) -> None:
        gate, up, down = (weights.pop(f"{prefix}.{part}_proj.weight") for part in ("gate", "up", "down"))
        gate_b, up_b, down_b = (weights.pop(f"{prefix}.{part}_proj.bias", None) for part in ("gate", "up", "down"))
        self.gated = GatedColumnParallelLinear(gate, up, (gate_b, up_b), parts.workspace)
        self.down = RowParallelLinear(down, down_b, parts.context.tensor_group, parts.workspace)

    def __call__(self, x_TH: Tensor) -> Tensor:
        return self.down(self.gated(x_TH))


class LlamaLayer:
    """residual += attention(norm(residual)); residual += mlp(norm(residual))"""

    def __init__(self, weights: Weights, index: int, stage_index: int, parts: StageParts) -> None:
        config, prefix = parts.config, f"model.layers.{index}"
        if config.hidden_act != "silu":
            raise UnsupportedModelError(f"hidden_act {config.hidden_act!r} is not served; supported: silu")
        before, after = (weights.pop(f"{prefix}.{name}_layernorm.weight") for name in ("input", "post_attention"))
        self.attention_norm = RMSNorm(before, config.rms_norm_eps, parts.workspace)
        self.attention = LlamaAttention(weights, f"{prefix}.self_attn", stage_index, parts)
        self.mlp_norm = RMSNorm(after, config.rms_norm_eps, parts.workspace)
        self.mlp = LlamaMLP(weights, f"{prefix}.mlp", parts)

    def __call__(self, residual_TH: Tensor, delta_TH: Tensor | None, positions_T: Tensor) -> Tensor:
        attended_TH = self.attention(self.attention_norm(residual_TH, delta_TH), positions_T)
        return self.mlp(self.mlp_norm(residual_TH, attended_TH))


LLAMA = Architecture(build_layer=LlamaLayer)
