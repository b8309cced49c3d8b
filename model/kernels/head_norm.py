"""Norm of each head of packed queries and keys, in place. Knows addresses and sizes, no layers."""

from __future__ import annotations

import math

import numpy as np

from model.kernels.compile import kernel
from model.kernels.threads import fork_join
from model.kernels.vector import LANES, fma, load_first, multiply, splat, store_first, sum_lanes

_ROWS_PER_THREAD = 8


@kernel
def _head_norm_part(
    thread: int,
    threads: int,
    x: int,
    weight: int,
    rows: int,
    stride: int,
    first: int,
    heads: int,
    size: int,
    epsilon: float,
) -> None:
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        for head in range(first, first + heads):
            at = x + (row * stride + head * size) * 4
            squares = splat(np.float32(0.0))
            for j in range(0, size, LANES):
                value = load_first(at + j * 4, size - j)
                squares = fma(value, value, squares)
            scale = splat(np.float32(1.0 / math.sqrt(sum_lanes(squares) / size + epsilon)))
            for j in range(0, size, LANES):
                value = multiply(load_first(at + j * 4, size - j), scale)
                store_first(at + j * 4, multiply(value, load_first(weight + j * 4, size - j)), size - j)


@kernel
def norm_heads(
    threads: int, x: int, weight: int, rows: int, stride: int, first: int, heads: int, size: int, epsilon: float
) -> None:
    """Root-mean-square norm in place of heads [first, first + heads) of each row of x; a row has `stride` elements."""
    used = max(1, min(threads, rows // _ROWS_PER_THREAD))
    fork_join(_head_norm_part, used, (x, weight, rows, stride, first, heads, size, epsilon))
