"""Gated MLPs (Shazeer, 2020): down(activation(gate(x)) * up(x)) on one rank. Knows slices, not how they were cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
import torch.nn.functional as functional
from torch import Tensor

from model.kernels import activation as kernels
from model.layers.linear import GatedColumnParallelLinear, LinearKernel, Weight, make_linear
from model.layers.workspace import Workspace
from model.parallel.context import TensorGroup
from model.weights.quantised import Int4Weight, Int8Weight, IntegerWeight

_KINDS = {"silu": kernels.SILU, "gelu_tanh": kernels.GELU_TANH, "clamped_swiglu": kernels.CLAMPED_SWIGLU}
_ALPHA = 1.702


@dataclass(frozen=True, slots=True)
class Activation:
    """What the gate does."""

    kind: Literal["silu", "gelu_tanh", "clamped_swiglu"] = "silu"
    limit: float = 0.0
    """Where clamped_swiglu (gpt-oss) clamps both projections."""


@dataclass(frozen=True, slots=True)
class MLPWeights:
    """This rank's rows of gate and up [N, H] and columns of down [H, N], and their biases."""

    gate: Weight
    up: Weight
    down: Weight
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    """None on all ranks but one, which share the sum."""


class GatedMLP:
    """This rank's part of the sum over ranks; a workspace buffer on CPU, valid until the next use of `name`."""

    def __init__(self, weights: MLPWeights, activation: Activation, space: Workspace, name: str = "delta") -> None:
        gate, up, biases = weights.gate, weights.up, (weights.gate_bias, weights.up_bias)
        if activation.kind == "silu" and _fuses(gate, space) and _fuses(up, space):
            self._gated: LinearKernel = GatedColumnParallelLinear(gate, up, biases, space)
        else:
            self._gated = _ActivatedProducts(weights, activation, space)
        self._down = make_linear(weights.down, weights.down_bias, space, name)

    def __call__(self, x_TH: Tensor) -> Tensor:
        return self._down(self._gated(x_TH))


def _fuses(weight: Weight, space: Workspace) -> TypeGuard[Tensor | IntegerWeight]:
    """Whether there is a product with the activation in it."""
    return isinstance(weight, Tensor) or (isinstance(weight, Int8Weight | Int4Weight) and space.device.type == "cpu")


class ParallelMLP:
    """A gated MLP that is cut over the tensor ranks: whole on every rank."""

    def __init__(self, weights: MLPWeights, activation: Activation, group: TensorGroup, space: Workspace) -> None:
        self._part, self._group = GatedMLP(weights, activation, space), group

    def __call__(self, x_TH: Tensor) -> Tensor:
        return self._group.all_reduce(self._part(x_TH))


class _ActivatedProducts:
    """activation(gate(x)) * up(x) where it is not one fused kernel."""

    def __init__(self, weights: MLPWeights, activation: Activation, space: Workspace) -> None:
        self._gate = make_linear(weights.gate, weights.gate_bias, space, "gate")
        self._up = make_linear(weights.up, weights.up_bias, space, "up")
        self._activation, self._space = activation, space

    def __call__(self, x_TK: Tensor) -> Tensor:
        gate_TN, up_TN = self._gate(x_TK), self._up(x_TK)
        if gate_TN.device.type != "cpu":
            return _activate(self._activation, gate_TN, up_TN)
        rows, width = gate_TN.shape
        y_TN = self._space.take("gated", rows, width)
        kind, limit = _KINDS[self._activation.kind], self._activation.limit
        gate, up, y = gate_TN.data_ptr(), up_TN.data_ptr(), y_TN.data_ptr()
        kernels.gate(self._space.threads, kind, limit, gate, up, y, rows, width)
        return y_TN


def _activate(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """As `kernels.activation.gate`, on any device and dtype."""
    if activation.kind == "clamped_swiglu":
        gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
        return gate * torch.sigmoid(_ALPHA * gate) * (up + 1)
    if activation.kind == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh") * up
    return functional.silu(gate) * up
