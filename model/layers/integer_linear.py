"""Products with 8-bit and 4-bit weights on CPU, packed once. Knows one rank's slice, not how it was cut.

T packed tokens, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.kernels import matmul, quantised_matmul
from model.kernels.quantised_pack import pack_bytes, pack_nibbles, pack_vector
from model.layers.workspace import Workspace, address_of
from model.weights.quantised import Int4Weight, Int8Weight, IntegerWeight


class _Product:
    """One kernel with its packed weights. What a call needs is looked up once for each number of rows."""

    def __init__(
        self, kernel: Callable[..., None], weights: tuple[Tensor, Tensor, Tensor], space: Workspace, name: str
    ) -> None:
        """`weights` are strips, scales and bias."""
        self._kernel, self._weights, self._workspace, self._name = kernel, weights, space, name
        self._addresses = tuple(tensor.data_ptr() for tensor in weights)
        self._results: tuple[Tensor, Tensor] | None = None
        self._arguments: tuple[int, ...] = ()

    def __call__(self, x_TK: Tensor, is_4_bit: bool, out_features: int) -> Tensor:
        space, rows = self._workspace, x_TK.shape[0]
        y_TN = space.take(self._name, rows, out_features)
        # The same tensor: nothing but the input can lie elsewhere than in the last call.
        if self._results is None or y_TN is not self._results[0]:
            depth = x_TK.shape[1]
            records = space.take("quantised", rows, quantised_matmul.input_elements(rows, depth, space.threads))
            self._results = y_TN, records
            place = (y_TN.data_ptr(), space.scratch, rows, depth, out_features)
            self._arguments = (records.data_ptr(), *self._addresses, *place)
        self._kernel(space.threads, is_4_bit, address_of(x_TK), *self._arguments)
        return y_TN


class IntegerLinear:
    """float32 on CPU with 8-bit or 4-bit weights; inputs are rounded to 8 bits in groups, each row by itself."""

    def __init__(self, weight: IntegerWeight, bias_N: Tensor | None, workspace: Workspace, name: str) -> None:
        self.out_features, self.in_features = weight.shape
        self.is_4_bit = isinstance(weight, Int4Weight)
        self.packed, self.scales = _pack_integers(weight)
        bias = pack_vector(bias_N, self.out_features)
        self._product = _Product(quantised_matmul.product, (self.packed, self.scales, bias), workspace, name)

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self._product(x_TK, self.is_4_bit, self.out_features)


class IntegerGatedLinear:
    """silu(x @ gate) * (x @ up) in one go, as `IntegerLinear`."""

    def __init__(
        self,
        weights: tuple[IntegerWeight, IntegerWeight],
        biases: tuple[Tensor | None, Tensor | None],
        space: Workspace,
        name: str,
    ) -> None:
        self.out_features, _ = weights[0].shape
        self.is_4_bit = isinstance(weights[0], Int4Weight)
        gate, up = (_pack_integers(weight) for weight in weights)
        bias = [pack_vector(bias, self.out_features) for bias in biases]
        packed = (torch.stack((gate[0], up[0]), 1), _in_turns(gate[1], up[1]), _in_turns(*bias))
        self._product = _Product(quantised_matmul.gated_product, packed, space, name)

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self._product(x_TK, self.is_4_bit, self.out_features)


def _pack_integers(weight: IntegerWeight) -> tuple[Tensor, Tensor]:
    """Strips, and the scales of columns (none in 4-bit weights, whose strips have theirs)."""
    if isinstance(weight, Int8Weight):
        return pack_bytes(weight.integers), pack_vector(weight.scales, weight.shape[0])
    return pack_nibbles(weight.integers, weight.scales, weight.minima), torch.empty(0)


def _in_turns(gate: Tensor, up: Tensor) -> Tensor:
    """Two vectors of whole strips, strip by strip."""
    return torch.stack((gate.view(-1, matmul.STRIP), up.view(-1, matmul.STRIP)), 1)
