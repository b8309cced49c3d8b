"""What gated MLPs do between their products, where it is not fused into them. Knows addresses and sizes, no layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.kernels.compile import kernel
from model.kernels.threads import fork_join
from model.kernels.vector import (
    LANES,
    add,
    divide,
    exp,
    fma,
    load_first,
    maximum,
    minimum,
    multiply,
    splat,
    store_first,
    subtract,
)

SILU, GELU_TANH, CLAMPED_SWIGLU = range(3)
_ROWS_PER_THREAD = 8
_SWIGLU_ALPHA = 1.702
_GELU_SCALE, _GELU_CUBE = 1.5957691216057308, 0.044715  # 2 * sqrt(2 / pi)


@kernel
def _logistic(x: Any) -> Any:
    return divide(splat(np.float32(1.0)), add(splat(np.float32(1.0)), exp(subtract(splat(np.float32(0.0)), x))))


@kernel
def _gated(kind: int, limit: float, gate: Any, up: Any) -> Any:
    """silu(gate) * up; gelu(gate) * up; or gpt-oss's gate * logistic(1.702 gate) * (up + 1), both clamped."""
    if kind == CLAMPED_SWIGLU:
        bound = splat(np.float32(limit))
        gate, up = minimum(gate, bound), maximum(minimum(up, bound), subtract(splat(np.float32(0.0)), bound))
        return multiply(
            multiply(gate, _logistic(multiply(gate, splat(np.float32(_SWIGLU_ALPHA))))), add(up, splat(np.float32(1.0)))
        )
    if kind == GELU_TANH:
        # 0.5 (1 + tanh(z)) is the logistic function of 2 z.
        cube = multiply(multiply(gate, gate), gate)
        z = multiply(fma(splat(np.float32(_GELU_CUBE)), cube, gate), splat(np.float32(_GELU_SCALE)))
        return multiply(multiply(gate, _logistic(z)), up)
    return multiply(multiply(gate, _logistic(gate)), up)


@kernel
def _gate_part(
    thread: int, threads: int, kind: int, limit: float, gate: int, up: int, y: int, rows: int, width: int
) -> None:
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        for j in range(0, width, LANES):
            at, left = (row * width + j) * 4, width - j
            value = _gated(kind, limit, load_first(gate + at, left), load_first(up + at, left))
            store_first(y + at, value, left)


@kernel
def gate(threads: int, kind: int, limit: float, gate: int, up: int, y: int, rows: int, width: int) -> None:
    """y = activation(gate) * up for [rows, width] float32 matrices; `kind` is one of the constants above."""
    used = max(1, min(threads, rows // _ROWS_PER_THREAD))
    fork_join(_gate_part, used, (kind, limit, gate, up, y, rows, width))


@kernel
def logistic(x: int, y: int, rows: int, width: int) -> None:
    """y = 1 / (1 + e**-x)"""
    for row in range(rows):
        for j in range(0, width, LANES):
            at, left = (row * width + j) * 4, width - j
            store_first(y + at, _logistic(load_first(x + at, left)), left)
