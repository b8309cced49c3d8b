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


class IntegerLinear:
    """float32 on CPU with 8-bit or 4-bit weights; inputs are rounded to 8 bits in groups, each row by itself."""

    def __init__(self, weight: IntegerWeight, bias_N: Tensor | None, workspace: Workspace, name: str) -> None:
        self.out_features, self.in_features = weight.shape
        self.is_4_bit = isinstance(weight, Int4Weight)
        self.packed, self.scales = _pack_integers(weight)
        self._bias = pack_vector(bias_N, self.out_features)
        self._addresses = (self.packed.data_ptr(), self.scales.data_ptr(), self._bias.data_ptr())
        self._workspace, self._name = workspace, name

    def __call__(self, x_TK: Tensor) -> Tensor:
        rows, space = x_TK.shape[0], self._workspace
        y_TN = space.take(self._name, rows, self.out_features)
        _run_integers(quantised_matmul.product, self.is_4_bit, x_TK, self._addresses, y_TN, space)
        return y_TN


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
        self._tensors = (torch.stack((gate[0], up[0]), 1), _in_turns(gate[1], up[1]), _in_turns(*bias))
        self._addresses = tuple(tensor.data_ptr() for tensor in self._tensors)
        self._workspace, self._name = space, name

    def __call__(self, x_TK: Tensor) -> Tensor:
        rows, space = x_TK.shape[0], self._workspace
        y_TN = space.take(self._name, rows, self.out_features)
        _run_integers(quantised_matmul.gated_product, self.is_4_bit, x_TK, self._addresses, y_TN, space)
        return y_TN


def _pack_integers(weight: IntegerWeight) -> tuple[Tensor, Tensor]:
    """Strips, and the scales of columns (none in 4-bit weights, whose strips have theirs)."""
    if isinstance(weight, Int8Weight):
        return pack_bytes(weight.integers), pack_vector(weight.scales, weight.shape[0])
    return pack_nibbles(weight.integers, weight.scales, weight.minima), torch.empty(0)


def _in_turns(gate: Tensor, up: Tensor) -> Tensor:
    """Two vectors of whole strips, strip by strip."""
    return torch.stack((gate.view(-1, matmul.STRIP), up.view(-1, matmul.STRIP)), 1)


def _run_integers(
    product: Callable[..., None], is_4_bit: bool, x_TK: Tensor, weights: tuple[int, ...], y_TN: Tensor, space: Workspace
) -> None:
    rows, depth = x_TK.shape
    records = space.take("quantised", 1, quantised_matmul.input_elements(rows, depth, space.threads))
    product(
        space.threads,
        int(is_4_bit),
        address_of(x_TK),
        records.data_ptr(),
        *weights,
        y_TN.data_ptr(),
        space.scratch,
        rows,
        depth,
        y_TN.shape[1],
    )
