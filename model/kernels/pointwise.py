"""Row by row work between the products: norms, rotation, embedding. Knows addresses and sizes, no layers."""

from __future__ import annotations

import math

import numpy as np

from model.kernels.compile import kernel
from model.kernels.memory import int32_at
from model.kernels.threads import fork_join
from model.kernels.tile import STRIP
from model.kernels.vector import (
    LANES,
    add,
    fma,
    load_first,
    multiply,
    splat,
    store_first,
    subtract,
    sum_lanes,
)

_ROWS_PER_THREAD = 8
"""Below this a second thread costs more than it brings."""


@kernel
def _useful_threads(threads: int, rows: int) -> int:
    return max(1, min(threads, rows // _ROWS_PER_THREAD))


@kernel
def _norm_part(
    thread: int, threads: int, x: int, delta: int, weight: int, y: int, rows: int, width: int, epsilon: float
) -> None:
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        source, target = x + row * width * 4, y + row * width * 4
        squares = splat(np.float32(0.0))
        for j in range(0, width, LANES):
            value = load_first(source + j * 4, width - j)
            if delta != 0:
                value = add(value, load_first(delta + (row * width + j) * 4, width - j))
                store_first(source + j * 4, value, width - j)
            squares = fma(value, value, squares)
        scale = splat(np.float32(1.0 / math.sqrt(sum_lanes(squares) / width + epsilon)))
        for j in range(0, width, LANES):
            value = multiply(load_first(source + j * 4, width - j), scale)
            store_first(target + j * 4, multiply(value, load_first(weight + j * 4, width - j)), width - j)


@kernel
def rms_norm(threads: int, x: int, delta: int, weight: int, y: int, rows: int, width: int, epsilon: float) -> None:
    """x += delta (unless delta is 0), then y = x / sqrt(mean(x**2) + epsilon) * weight, for each row."""
    fork_join(_norm_part, _useful_threads(threads, rows), (x, delta, weight, y, rows, width, epsilon))


@kernel
def _rotary_part(
    thread: int, threads: int, x: int, positions: int, table: int, rows: int, stride: int, heads: int, size: int
) -> None:
    half = size // 2
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        cosines = table + int32_at(positions, row) * size * 4
        sines = cosines + half * 4
        for head in range(heads):
            first = x + (row * stride + head * size) * 4
            second = first + half * 4
            for j in range(0, half, LANES):
                left = half - j
                cosine, sine = load_first(cosines + j * 4, left), load_first(sines + j * 4, left)
                a, b = load_first(first + j * 4, left), load_first(second + j * 4, left)
                store_first(first + j * 4, subtract(multiply(a, cosine), multiply(b, sine)), left)
                store_first(second + j * 4, add(multiply(b, cosine), multiply(a, sine)), left)


@kernel
def rotary(threads: int, x: int, positions: int, table: int, rows: int, stride: int, heads: int, size: int) -> None:
    """Rotate the first `heads` heads of each row of x in place.

    `table` holds for each position size/2 cosines, then size/2 sines; `stride` is the elements of a row of x.
    """
    fork_join(_rotary_part, _useful_threads(threads, rows), (x, positions, table, rows, stride, heads, size))


@kernel
def embed(table: int, ids: int, first_id: int, num_ids: int, y: int, rows: int, width: int, packed: bool) -> None:
    """y[row] = the table's row of its id; zeros for an id that is not in [first_id, first_id + num_ids).

    `packed`: the table is a weight packed for products, so that a tied head and embedding are held once.
    """
    for row in range(rows):
        index = int32_at(ids, row) - first_id
        target = y + row * width * 4
        if index < 0 or index >= num_ids:
            for j in range(0, width, LANES):
                store_first(target + j * 4, splat(np.float32(0.0)), width - j)
        elif packed:
            source = table + (index // STRIP * width * STRIP + index % STRIP) * 4
            for j in range(width):
                store_first(target + j * 4, load_first(source + j * STRIP * 4, 1), 1)
        else:
            for j in range(0, width, LANES):
                store_first(target + j * 4, load_first(table + (index * width + j) * 4, width - j), width - j)
