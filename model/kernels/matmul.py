"""Products of activations with weights packed once into strips. Knows addresses and sizes, no layers.

A packed weight holds, strip by strip, [in_features, STRIP] elements: what a tile reads is consecutive. The last strip
is filled up with zeros. Rows are cut into chunks and strips are dealt to threads in runs, so a strip is read from
memory once and reused from cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.compile import kernel
from model.kernels.threads import fork_join
from model.kernels.tile import STRIP as STRIP
from model.kernels.tile import streamed_strip_product
from model.kernels.vector import LANES, load, multiply, silu, store_first

_CHUNK_ROWS = 96
"""Rows that share one visit to a strip: a multiple of every tile height, small enough to stay in cache."""


def pack(weight_NK: Tensor) -> Tensor:
    """[N, K] weights as [strips, K, STRIP], the last strip filled up with zeros."""
    n, k = weight_NK.shape
    strips = -(-n // STRIP)
    packed = weight_NK.new_zeros(strips, k, STRIP)
    whole = n // STRIP
    packed[:whole].copy_(weight_NK[: whole * STRIP].view(whole, STRIP, k).transpose(1, 2))
    if whole < strips:
        packed[whole, :, : n - whole * STRIP].copy_(weight_NK[whole * STRIP :].t())
    return packed


def pack_bias(bias_N: Tensor | None, out_features: int) -> Tensor:
    """[strips * STRIP] bias; zeros where there is none."""
    packed = torch.zeros(-(-out_features // STRIP) * STRIP)
    if bias_N is not None:
        packed[:out_features].copy_(bias_N)
    return packed


def pack_pair(gate_NK: Tensor, up_NK: Tensor) -> Tensor:
    """Two weights of one shape, strip by strip in turns: [strips, 2, K, STRIP]."""
    return torch.stack((pack(gate_NK), pack(up_NK)), 1)


@kernel
def _product_part(
    thread: int, threads: int, x: int, w: int, bias: int, y: int, scratch: int, rows: int, depth: int, columns: int
) -> None:
    strips = (columns + STRIP - 1) // STRIP
    chunks = (rows + _CHUNK_ROWS - 1) // _CHUNK_ROWS
    spare = scratch + 2 * thread * _CHUNK_ROWS * STRIP * 4
    for item in range(strips * chunks * thread // threads, strips * chunks * (thread + 1) // threads):
        strip, first = item // chunks, item % chunks * _CHUNK_ROWS
        height, width = min(rows - first, _CHUNK_ROWS), columns - strip * STRIP
        inputs, outputs = x + first * depth * 4, y + (first * columns + strip * STRIP) * 4
        target, stride = (outputs, columns * 4) if width >= STRIP else (spare, STRIP * 4)
        _strip(height, inputs, w, bias, strip, target, stride, depth)
        if width < STRIP:
            for m in range(height):
                for j in range(0, width, LANES):
                    store_first(outputs + (m * columns + j) * 4, load(spare + (m * STRIP + j) * 4), width - j)


@kernel
def _strip(rows: int, x: int, w: int, bias: int, strip: int, y: int, y_stride: int, depth: int) -> None:
    """Rows of x without gaps times one packed strip; the strip that lies behind it in memory is fetched meanwhile."""
    weights, following = w + strip * depth * STRIP * 4, w + (strip + 1) * depth * STRIP * 4
    start = bias + strip * STRIP * 4
    streamed_strip_product(rows, x, depth * 4, weights, STRIP * 4, start, 0, y, y_stride, depth, following)


@kernel
def product(threads: int, x: int, w: int, bias: int, y: int, scratch: int, rows: int, depth: int, columns: int) -> None:
    """y[rows, columns] = x[rows, depth] @ unpacked w + bias.

    `scratch` holds `scratch_elements(threads)`; all matrices are row-major float32 without gaps.
    """
    fork_join(_product_part, threads, (x, w, bias, y, scratch, rows, depth, columns))


@kernel
def _gated_part(
    thread: int, threads: int, x: int, w: int, bias: int, y: int, scratch: int, rows: int, depth: int, columns: int
) -> None:
    strips = (columns + STRIP - 1) // STRIP
    chunks = (rows + _CHUNK_ROWS - 1) // _CHUNK_ROWS
    gates = scratch + 2 * thread * _CHUNK_ROWS * STRIP * 4
    ups = gates + _CHUNK_ROWS * STRIP * 4
    for item in range(strips * chunks * thread // threads, strips * chunks * (thread + 1) // threads):
        strip, first = item // chunks, item % chunks * _CHUNK_ROWS
        height = min(rows - first, _CHUNK_ROWS)
        inputs = x + first * depth * 4
        _strip(height, inputs, w, bias, 2 * strip, gates, STRIP * 4, depth)
        _strip(height, inputs, w, bias, 2 * strip + 1, ups, STRIP * 4, depth)
        width = min(columns - strip * STRIP, STRIP)
        for m in range(height):
            output = y + ((first + m) * columns + strip * STRIP) * 4
            for j in range(0, width, LANES):
                at = (m * STRIP + j) * 4
                store_first(output + j * 4, multiply(silu(load(gates + at)), load(ups + at)), width - j)


@kernel
def gated_product(
    threads: int, x: int, w: int, bias: int, y: int, scratch: int, rows: int, depth: int, columns: int
) -> None:
    """y = silu(x @ gate) * (x @ up), for weights of `pack_pair`; otherwise as `product`."""
    fork_join(_gated_part, threads, (x, w, bias, y, scratch, rows, depth, columns))


def scratch_elements(threads: int) -> int:
    """Elements of scratch that `threads` threads need."""
    return 2 * threads * _CHUNK_ROWS * STRIP
