"""Linear layers, cut over tensor ranks by columns or by rows. Knows one rank's slice, not how it was cut.

Column-parallel layers split outputs and need no communication; row-parallel layers split inputs and sum the partial
results of all ranks (Shoeybi et al., 2019). T packed tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from model.kernels import matmul
from model.layers.integer_linear import IntegerGatedLinear, IntegerLinear
from model.layers.workspace import Workspace, address_of
from model.parallel.context import TensorGroup
from model.weights.quantised import Int4Weight, Int8Weight, IntegerWeight, QuantisedWeight

Weight = Tensor | QuantisedWeight
"""A weight [N, K]; quantised ones stay so in memory."""


class LinearKernel(Protocol):
    """A product with one weight, prepared once. The result may be a workspace buffer: valid until its next use."""

    def __call__(self, x_TK: Tensor) -> Tensor: ...


class PackedLinear:
    """float32 on CPU: the weight is repacked once; a row's bits do not depend on the other rows."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, workspace: Workspace, name: str) -> None:
        self.out_features, self.in_features = weight_NK.shape
        self.packed = matmul.pack(weight_NK)
        self._bias = matmul.pack_bias(bias_N, self.out_features)
        self._addresses = (self.packed.data_ptr(), self._bias.data_ptr())
        self._workspace, self._name = workspace, name

    def __call__(self, x_TK: Tensor) -> Tensor:
        rows, space = x_TK.shape[0], self._workspace
        y_TN = space.take(self._name, rows, self.out_features)
        x, (w, bias) = address_of(x_TK), self._addresses
        matmul.product(
            space.threads, x, w, bias, y_TN.data_ptr(), space.scratch, rows, self.in_features, self.out_features
        )
        return y_TN


class PackedGatedLinear:
    """silu(x @ gate) * (x @ up) in one go, float32 on CPU."""

    def __init__(
        self, gate_NK: Tensor, up_NK: Tensor, biases: tuple[Tensor | None, Tensor | None], space: Workspace, name: str
    ) -> None:
        self.out_features, self.in_features = gate_NK.shape
        self.packed = matmul.pack_pair(gate_NK, up_NK)
        gate_bias, up_bias = (matmul.pack_bias(bias, self.out_features) for bias in biases)
        self._bias = torch.stack((gate_bias.view(-1, matmul.STRIP), up_bias.view(-1, matmul.STRIP)), 1)
        self._addresses = (self.packed.data_ptr(), self._bias.data_ptr())
        self._workspace, self._name = space, name

    def __call__(self, x_TK: Tensor) -> Tensor:
        rows, space = x_TK.shape[0], self._workspace
        y_TN = space.take(self._name, rows, self.out_features)
        x, (w, bias) = address_of(x_TK), self._addresses
        matmul.gated_product(
            space.threads, x, w, bias, y_TN.data_ptr(), space.scratch, rows, self.in_features, self.out_features
        )
        return y_TN


class TorchLinear:
    """Any device and dtype, by torch's own product."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        self._weight, self._bias = weight_NK, bias_N

    def __call__(self, x_TK: Tensor) -> Tensor:
        return functional.linear(x_TK, self._weight, self._bias)


class TorchGatedLinear:
    """As `PackedGatedLinear`, on any device and dtype: one product, then the activation."""

    def __init__(self, gate_NK: Tensor, up_NK: Tensor, biases: tuple[Tensor | None, Tensor | None]) -> None:
        self._weight = torch.cat((gate_NK, up_NK))
        gate_bias, up_bias = biases
        self._bias = None if gate_bias is None or up_bias is None else torch.cat((gate_bias, up_bias))

    def __call__(self, x_TK: Tensor) -> Tensor:
        gate, up = functional.linear(x_TK, self._weight, self._bias).chunk(2, -1)
        return functional.silu(gate) * up


class QuantisedLinear:
    """Any device: the weight stays as small as it is stored, and is expanded for each product."""

    def __init__(self, weight: QuantisedWeight, bias_N: Tensor | None, workspace: Workspace, name: str) -> None:
        self._weight, self._bias, self._workspace, self._name = weight, bias_N, workspace, name

    def __call__(self, x_TK: Tensor) -> Tensor:
        weight_NK = self._weight.expand(x_TK.dtype)
        return make_linear(weight_NK, self._bias, self._workspace, self._name)(x_TK)


def make_linear(weight_NK: Weight, bias_N: Tensor | None, workspace: Workspace, name: str) -> LinearKernel:
    """The product for the workspace's device. `name` is the workspace buffer that holds results."""
    if isinstance(weight_NK, Int8Weight | Int4Weight) and workspace.device.type == "cpu":
        return IntegerLinear(weight_NK, bias_N, workspace, name)
    if not isinstance(weight_NK, Tensor):
        return QuantisedLinear(weight_NK, bias_N, workspace, name)
    if workspace.device.type == "cpu":
        return PackedLinear(weight_NK, bias_N, workspace, name)
    return TorchLinear(weight_NK, bias_N)


class ColumnParallelLinear:
    """y = x @ W.T + b for this rank's rows of W: outputs stay split."""

    def __init__(self, weight_NK: Weight, bias_N: Tensor | None, workspace: Workspace, name: str) -> None:
        self.product = make_linear(weight_NK, bias_N, workspace, name)

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self.product(x_TK)


class QKVParallelLinear(ColumnParallelLinear):
    """Queries, keys and values of this rank's heads in one product: [T, (query heads + 2 * KV heads) * head size]."""

    def __init__(
        self,
        weights: tuple[Weight, Weight, Weight],
        biases: tuple[Tensor | None, Tensor | None, Tensor | None],
        workspace: Workspace,
        name: str = "qkv",
    ) -> None:
        present = [bias for bias in biases if bias is not None]
        super().__init__(_stack(weights), torch.cat(present) if present else None, workspace, name)


def _stack(weights: Sequence[Weight]) -> Weight:
    """One weight whose rows are those of all, in order; all are of one form."""
    if isinstance(weights[0], Int8Weight):
        return Int8Weight.stack([weight for weight in weights if isinstance(weight, Int8Weight)])
    if isinstance(weights[0], Int4Weight):
        return Int4Weight.stack([weight for weight in weights if isinstance(weight, Int4Weight)])
    return torch.cat([weight for weight in weights if isinstance(weight, Tensor)])


class GatedColumnParallelLinear:
    """silu(gate(x)) * up(x) for this rank's columns of the MLP (Shazeer, 2020)."""

    def __init__(
        self,
        gate_NK: Tensor | IntegerWeight,
        up_NK: Tensor | IntegerWeight,
        biases: tuple[Tensor | None, Tensor | None],
        workspace: Workspace,
        name: str = "gated",
    ) -> None:
        self.product: LinearKernel
        if isinstance(gate_NK, Tensor):
            assert isinstance(up_NK, Tensor), "gate and up are of one form"
            on_cpu = workspace.device.type == "cpu"
            self.product = (
                PackedGatedLinear(gate_NK, up_NK, biases, workspace, name)
                if on_cpu
                else TorchGatedLinear(gate_NK, up_NK, biases)
            )
        else:
            assert not isinstance(up_NK, Tensor), "gate and up are of one form"
            self.product = IntegerGatedLinear((gate_NK, up_NK), biases, workspace, name)

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self.product(x_TK)


class RowParallelLinear:
    """y = sum over ranks of x_rank @ W_rank.T, plus the bias once (on rank 0): outputs are whole on every rank."""

    def __init__(
        self, weight_NK: Weight, bias_N: Tensor | None, group: TensorGroup, workspace: Workspace, name: str = "delta"
    ) -> None:
        self.product = make_linear(weight_NK, bias_N if group.rank == 0 else None, workspace, name)
        self._group = group

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self._group.all_reduce(self.product(x_TK))
