"""gpt-oss (OpenAI, 2025): windows in every other layer, attention sinks, experts with a clamped gate, MXFP4 weights."""

from __future__ import annotations

from torch import Tensor

from model.architectures.blocks import GroupedQueryAttention, PreNormLayer, expert_numbers, make_experts
from model.architectures.interface import Architecture, DecoderLayer, StageParts, Weights
from model.layers.linear import Weight
from model.layers.mlp import Activation, MLPWeights
from model.weights.quantised import MXFP4Weight


def _layer(weights: Weights, index: int, stage_index: int, parts: StageParts) -> DecoderLayer:
    prefix = f"model.layers.{index}.mlp"
    attention = GroupedQueryAttention(weights, index, stage_index, parts)
    router = (weights.pop(f"{prefix}.router.weight"), weights.pop(f"{prefix}.router.bias"))
    activation = Activation("clamped_swiglu", parts.config.swiglu_limit)
    mlp = make_experts(router, _experts(weights, f"{prefix}.experts", parts), parts, activation=activation)
    return PreNormLayer(weights, index, attention, mlp, parts)


def _experts(weights: Weights, prefix: str, parts: StageParts) -> list[MLPWeights]:
    """This rank's experts, cut out of the stacked tensors; gate and up take turns in the rows of their projection."""
    gate_up_bias_EN = weights.pop(f"{prefix}.gate_up_proj_bias")
    down_bias_EH = weights.pop(f"{prefix}.down_proj_bias")
    gates, ups, downs = _dense(weights, prefix) if parts.config.quantisation is None else _mxfp4(weights, prefix)
    # The ranks of an expert group share the sum: the bias counts once.
    shares_first = parts.context.tensor_group.rank % parts.context.shard.dims.expert_group_size == 0
    return [
        MLPWeights(
            gates[i],
            ups[i],
            downs[i],
            gate_up_bias_EN[i, 0::2].contiguous(),
            gate_up_bias_EN[i, 1::2].contiguous(),
            down_bias_EH[i].contiguous() if shares_first else None,
        )
        for i in range(len(expert_numbers(parts)))
    ]


Stacked = tuple[list[Weight], list[Weight], list[Weight]]


def _dense(weights: Weights, prefix: str) -> Stacked:
    """Weights that are not quantised are stored with inputs first."""
    gate_up_EHN: Tensor = weights.pop(f"{prefix}.gate_up_proj")
    down_ENH: Tensor = weights.pop(f"{prefix}.down_proj")
    return (
        [expert[:, 0::2].t().contiguous() for expert in gate_up_EHN],
        [expert[:, 1::2].t().contiguous() for expert in gate_up_EHN],
        [expert.t().contiguous() for expert in down_ENH],
    )


def _mxfp4(weights: Weights, prefix: str) -> Stacked:
    both, down = (
        list(zip(weights.pop(f"{prefix}.{name}_blocks"), weights.pop(f"{prefix}.{name}_scales"), strict=True))
        for name in ("gate_up_proj", "down_proj")
    )
    return (
        [MXFP4Weight(blocks[0::2].contiguous(), scales[0::2].contiguous()) for blocks, scales in both],
        [MXFP4Weight(blocks[1::2].contiguous(), scales[1::2].contiguous()) for blocks, scales in both],
        [MXFP4Weight(blocks, scales) for blocks, scales in down],
    )


GPT_OSS = Architecture(build_layer=_layer)
