"""Products of activations with 8-bit and 4-bit weights packed into strips. Knows addresses and sizes, no layers.

Activations are quantised as they come, each group of 32 neighbours by its own largest value, so a row depends on no
other. `model.kernels.quantised_tile` says how everything lies in memory.
"""

from __future__ import annotations

import numpy as np

from model.kernels.compile import kernel
from model.kernels.memory import byte_at, float32_at, int32_at, put_float32, put_int32
from model.kernels.quantised_tile import (
    BYTE_GROUP,
    INPUT_RECORD,
    NIBBLE_GROUP,
    OFFSET_AT,
    SCALE_AT,
    SCALED_SUM_AT,
    byte_strip_product,
    nibble_strip_product,
)
from model.kernels.threads import fork_join
from model.kernels.tile import STRIP
from model.kernels.vector import (
    LANES,
    add,
    load,
    load_first,
    max_lanes,
    maximum,
    multiply,
    round_whole,
    silu,
    splat,
    store_bytes,
    store_first,
    subtract,
    sum_lanes,
)
from model.quantization import GROUP

_CHUNK_ROWS = 96
"""Rows that share one visit to a strip."""
_FEW_ROWS = 8
"""Up to so many rows, each thread quantises all of them for itself: that costs less than to wait for one another."""
_LARGEST = np.float32(127.0)


def num_groups(in_features: int) -> int:
    """Groups of a row; the last is filled up with zeros."""
    return -(-in_features // GROUP)


def input_elements(rows: int, in_features: int, threads: int) -> int:
    """float32 elements that each row of a product's quantised inputs takes, where there are so many rows."""
    copies = threads if rows <= _FEW_ROWS else 1
    return copies * num_groups(in_features) * INPUT_RECORD // 4


@kernel
def _quantise_row(x: int, depth: int, records: int) -> None:
    for first in range(0, depth, GROUP):
        source, left, record = x + first * 4, depth - first, records + first // GROUP * INPUT_RECORD
        a, b = load_first(source, left), load_first(source + LANES * 4, left - LANES)
        zero = splat(np.float32(0.0))
        largest = max_lanes(maximum(maximum(a, subtract(zero, a)), maximum(b, subtract(zero, b))))
        factor = splat(_LARGEST / largest if largest > 0 else np.float32(0.0))
        a, b = round_whole(multiply(a, factor)), round_whole(multiply(b, factor))
        store_bytes(record, a)
        store_bytes(record + LANES, b)
        total, scale = sum_lanes(add(a, b)), np.float32(largest / _LARGEST)
        put_float32(record + SCALE_AT, 0, scale)
        put_float32(record + SCALED_SUM_AT, 0, np.float32(scale * total))
        put_int32(record + OFFSET_AT, 0, int(total) * -128)


@kernel
def _quantise_part(thread: int, threads: int, x: int, records: int, rows: int, depth: int) -> None:
    stride = (depth + GROUP - 1) // GROUP * INPUT_RECORD
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        _quantise_row(x + row * depth * 4, depth, records + row * stride)


@kernel
def _inputs(thread: int, x: int, records: int, rows: int, depth: int) -> int:
    """Where this thread finds the quantised rows; a few rows it quantises itself."""
    if rows > _FEW_ROWS:
        return records
    own = records + thread * rows * ((depth + GROUP - 1) // GROUP) * INPUT_RECORD
    _quantise_part(0, 1, x, own, rows, depth)
    return own


@kernel
def _strip(
    is_4_bit: int, rows: int, records: int, w: int, scales: int, bias: int, strip: int, y: int, stride: int, groups: int
) -> None:
    """Quantised rows times one packed strip."""
    at = strip * STRIP * 4
    if is_4_bit:
        weights = w + strip * groups * NIBBLE_GROUP
        nibble_strip_product(rows, records, groups * INPUT_RECORD, weights, 0, bias + at, y, stride, groups)
    else:
        weights = w + strip * groups * BYTE_GROUP
        byte_strip_product(rows, records, groups * INPUT_RECORD, weights, scales + at, bias + at, y, stride, groups)


@kernel
def _product_part(
    thread: int,
    threads: int,
    is_4_bit: int,
    x: int,
    records: int,
    w: int,
    scales: int,
    bias: int,
    y: int,
    scratch: int,
    rows: int,
    depth: int,
    columns: int,
) -> None:
    groups, strips = (depth + GROUP - 1) // GROUP, (columns + STRIP - 1) // STRIP
    chunks = (rows + _CHUNK_ROWS - 1) // _CHUNK_ROWS
    inputs, spare = _inputs(thread, x, records, rows, depth), scratch + 2 * thread * _CHUNK_ROWS * STRIP * 4
    for item in range(strips * chunks * thread // threads, strips * chunks * (thread + 1) // threads):
        strip, first = item // chunks, item % chunks * _CHUNK_ROWS
        height, width = min(rows - first, _CHUNK_ROWS), columns - strip * STRIP
        source, outputs = inputs + first * groups * INPUT_RECORD, y + (first * columns + strip * STRIP) * 4
        target, stride = (outputs, columns * 4) if width >= STRIP else (spare, STRIP * 4)
        _strip(is_4_bit, height, source, w, scales, bias, strip, target, stride, groups)
        if width < STRIP:
            for m in range(height):
                for j in range(0, width, LANES):
                    store_first(outputs + (m * columns + j) * 4, load(spare + (m * STRIP + j) * 4), width - j)


@kernel
def product(
    threads: int,
    is_4_bit: int,
    x: int,
    records: int,
    w: int,
    scales: int,
    bias: int,
    y: int,
    scratch: int,
    rows: int,
    depth: int,
    columns: int,
) -> None:
    """y[rows, columns] = x[rows, depth] @ weights + bias, all but the weights float32 without gaps.

    `records` holds `input_elements` for each row, `scratch` as much as `matmul.product` asks for.
    """
    if rows > _FEW_ROWS:
        fork_join(_quantise_part, threads, (x, records, rows, depth))
    fork_join(_product_part, threads, (is_4_bit, x, records, w, scales, bias, y, scratch, rows, depth, columns))


@kernel
def _gated_part(
    thread: int,
    threads: int,
    is_4_bit: int,
    x: int,
    records: int,
    w: int,
    scales: int,
    bias: int,
    y: int,
    scratch: int,
    rows: int,
    depth: int,
    columns: int,
) -> None:
    groups, strips = (depth + GROUP - 1) // GROUP, (columns + STRIP - 1) // STRIP
    chunks = (rows + _CHUNK_ROWS - 1) // _CHUNK_ROWS
    gates = scratch + 2 * thread * _CHUNK_ROWS * STRIP * 4
    ups, inputs = gates + _CHUNK_ROWS * STRIP * 4, _inputs(thread, x, records, rows, depth)
    for item in range(strips * chunks * thread // threads, strips * chunks * (thread + 1) // threads):
        strip, first = item // chunks, item % chunks * _CHUNK_ROWS
        height, width = min(rows - first, _CHUNK_ROWS), min(columns - strip * STRIP, STRIP)
        source = inputs + first * groups * INPUT_RECORD
        _strip(is_4_bit, height, source, w, scales, bias, 2 * strip, gates, STRIP * 4, groups)
        _strip(is_4_bit, height, source, w, scales, bias, 2 * strip + 1, ups, STRIP * 4, groups)
        for m in range(height):
            output = y + ((first + m) * columns + strip * STRIP) * 4
            for j in range(0, width, LANES):
                at = (m * STRIP + j) * 4
                store_first(output + j * 4, multiply(silu(load(gates + at)), load(ups + at)), width - j)


@kernel
def gated_product(
    threads: int,
    is_4_bit: int,
    x: int,
    records: int,
    w: int,
    scales: int,
    bias: int,
    y: int,
    scratch: int,
    rows: int,
    depth: int,
    columns: int,
) -> None:
    """y = silu(x @ gate) * (x @ up); strips of gate and up take turns. Otherwise as `product`."""
    if rows > _FEW_ROWS:
        fork_join(_quantise_part, threads, (x, records, rows, depth))
    fork_join(_gated_part, threads, (is_4_bit, x, records, w, scales, bias, y, scratch, rows, depth, columns))


@kernel
def embed(w: int, scales: int, ids: int, first_id: int, num_ids: int, y: int, rows: int, width: int) -> None:
    """y[row] = the row of its id in packed 8-bit weights; zeros for an id not in [first_id, first_id + num_ids)."""
    groups = (width + GROUP - 1) // GROUP
    for row in range(rows):
        index, target = int32_at(ids, row) - first_id, y + row * width * 4
        inside = 0 <= index < num_ids
        column = w + index // STRIP * groups * BYTE_GROUP + index % STRIP * 4
        scale = float32_at(scales, index) if inside else np.float32(0.0)
        for k in range(width):
            value = byte_at(column + k // 4 * STRIP * 4, k % 4) - 128 if inside else 0
            put_float32(target, k, np.float32(value) * scale)
