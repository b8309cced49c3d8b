"""What families share: grouped-query attention with its options, MLPs, experts, the pre-norm layer.

Optional parts (biases, head norms, sinks) are there if the loader brought their weights. Legend: T packed tokens,
H hidden size, N = (query heads + 2 * KV heads) * head size on this rank.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from model.architectures.interface import StageParts, Weights
from model.config import ExpertsConfig, UnsupportedModelError
from model.layers.linear import QKVParallelLinear, RowParallelLinear, Weight, make_linear
from model.layers.mlp import Activation, GatedMLP, MLPWeights, ParallelMLP
from model.layers.moe import MixtureOfExperts
from model.layers.norm import HeadNorm, RMSNorm

Block = Callable[[Tensor], Tensor]
"""[T, H] to [T, H], whole on every rank."""
Attention = Callable[[Tensor, Tensor], Tensor]
"""[T, H] and positions [T] to [T, H]."""
GATED = ("gate_proj", "up_proj", "down_proj")


class GroupedQueryAttention:
    """x -> o(attention(rotate(norm(qkv(x)))))"""

    def __init__(
        self, weights: Weights, index: int, stage_index: int, parts: StageParts, *, norm_offset: float = 0.0
    ) -> None:
        prefix, config, space = f"model.layers.{index}.self_attn", parts.config, parts.workspace
        names = [f"{prefix}.{part}_proj" for part in "qkv"]
        q, k, v = (weights.pop(f"{name}.weight") for name in names)
        q_bias, k_bias, v_bias = (weights.pop(f"{name}.bias", None) for name in names)
        self.qkv = QKVParallelLinear((q, k, v), (q_bias, k_bias, v_bias), space)
        output, output_bias = weights.pop(f"{prefix}.o_proj.weight"), weights.pop(f"{prefix}.o_proj.bias", None)
        self.output = RowParallelLinear(output, output_bias, parts.context.tensor_group, space)
        head_norms = (weights.pop(f"{prefix}.{part}_norm.weight", None) for part in "qk")
        self._q_norm, self._k_norm = (
            None if weight is None else HeadNorm(weight + norm_offset, config.rms_norm_eps, space)
            for weight in head_norms
        )
        self._sinks, self._window = weights.pop(f"{prefix}.sinks", None), config.window(index)
        self._rotary, self._backend, self._layer = parts.rotary_of(index), parts.attention, stage_index
        heads = parts.context.shard.heads
        self._query_heads, self._kv_heads = len(heads.slots), heads.kv_heads.size

    def __call__(self, x_TH: Tensor, positions_T: Tensor) -> Tensor:
        qkv_TN = self.qkv(x_TH)
        if self._q_norm is not None and self._k_norm is not None:
            self._q_norm(qkv_TN, 0, self._query_heads)
            self._k_norm(qkv_TN, self._query_heads, self._kv_heads)
        self._rotary(qkv_TN, positions_T, self._query_heads + self._kv_heads)
        return self.output(self._backend.attend(qkv_TN, self._layer, self._window, self._sinks))


class PreNormLayer:
    """residual += attention(norm(residual)); residual += mlp(norm(residual))"""

    def __init__(self, weights: Weights, index: int, attention: Attention, mlp: Block, parts: StageParts) -> None:
        prefix, epsilon, space = f"model.layers.{index}", parts.config.rms_norm_eps, parts.workspace
        before, after = (weights.pop(f"{prefix}.{name}_layernorm.weight") for name in ("input", "post_attention"))
        self.attention_norm, self.attention = RMSNorm(before, epsilon, space), attention
        self.mlp_norm, self.mlp = RMSNorm(after, epsilon, space), mlp

    def __call__(self, residual_TH: Tensor, delta_TH: Tensor | None, positions_T: Tensor) -> Tensor:
        attended_TH = self.attention(self.attention_norm(residual_TH, delta_TH), positions_T)
        return self.mlp(self.mlp_norm(residual_TH, attended_TH))


def check_activation(parts: StageParts, served: str) -> None:
    """Refuse another activation than the family's.

    Raises:
        UnsupportedModelError: naming both.
    """
    if parts.config.hidden_act != served:
        raise UnsupportedModelError(f"hidden_act {parts.config.hidden_act!r} is not served; supported: {served}")


def take_mlp(weights: Weights, prefix: str, names: tuple[str, str, str] = GATED) -> MLPWeights:
    """The weights of a gated MLP called `prefix`; `names` are those of gate, up and down."""
    gate, up, down = (weights.pop(f"{prefix}.{name}.weight") for name in names)
    return MLPWeights(gate, up, down, *(weights.pop(f"{prefix}.{name}.bias", None) for name in names))


def make_mlp(weights: MLPWeights, parts: StageParts, activation: Activation | None = None) -> ParallelMLP:
    """A dense layer's MLP."""
    group = parts.context.tensor_group
    return ParallelMLP(weights, activation or Activation(), group, parts.workspace)


def make_experts(
    router: tuple[Weight, Tensor | None],
    experts: list[MLPWeights],
    parts: StageParts,
    *,
    activation: Activation | None = None,
    shared: MLPWeights | None = None,
    correction_E: Tensor | None = None,
) -> MixtureOfExperts:
    """A sparse layer's experts; `router` is its weight and bias."""
    config, space, activation = parts.config.experts, parts.workspace, activation or Activation()
    assert isinstance(config, ExpertsConfig)
    return MixtureOfExperts(
        make_linear(*router, space, "router"),
        correction_E,
        [GatedMLP(expert, activation, space) for expert in experts],
        None if shared is None else GatedMLP(shared, activation, space),
        config,
        parts.context.shard.experts,
        parts.context.tensor_group,
    )


def expert_numbers(parts: StageParts) -> range:
    """The experts that this rank has a slice of."""
    held = parts.context.shard.experts.experts
    return range(held.start, held.end)
