"""Causal grouped-query attention that reads paged keys and values where they lie. Knows addresses, no layers.

Keys of a block are stored [D, block] and values [block, D], so both products run along consecutive memory and
neither needs a sum across lanes. A row's keys are taken in segments that start at fixed positions; each segment has
its own softmax, and segments are merged in order (Milakov and Gimelshein, 2018; Dao et al., 2022). So a row's bits
depend on its query and its own keys, not on how many rows came with it or whether they came one at a time.

A tile is some consecutive tokens of one sequence. Its rows are those tokens' query heads that share one KV head: they
share each load of a key. Legend: D head size, G query heads a KV head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from model.kernels.compile import kernel
from model.kernels.memory import fetch, float32_at, int32_at, put_float32
from model.kernels.threads import claim, fork_join
from model.kernels.tile import STRIP, strip_product, vector_product
from model.kernels.vector import (
    LANES,
    add,
    drop_outside,
    exp,
    fma,
    lane,
    load,
    max_lanes,
    maximum,
    multiply,
    splat,
    store,
    subtract,
    sum_lanes,
)

SEGMENT = 256
"""Keys with one softmax: a multiple of every block size."""
TILE_ROWS = 48
"""Rows of a tile, at least G."""
_NEVER = np.float32(-math.inf)
_TOKENS_PER_THREAD = 8


class Heads(NamedTuple):
    """Shape of a layer's attention on one rank."""

    kv_heads: int
    group: int
    """G"""
    head_dim: int
    """D, a multiple of LANES."""
    block_size: int
    """Tokens of a block, a multiple of LANES and a divisor of SEGMENT."""
    scale: float
    """Factor of the scores."""


class Pages(NamedTuple):
    """Addresses of one layer's blocks."""

    keys: int
    """float32 [blocks, kv_heads, D, block_size]"""
    values: int
    """float32 [blocks, kv_heads, block_size, D]"""


class Plan(NamedTuple):
    """One step's work: int32 arrays by address."""

    num_tokens: int
    positions: int
    """[num_tokens]"""
    row_of_token: int
    """[num_tokens] row of the block table."""
    tables: int
    """[rows, table_stride] block ids."""
    table_stride: int
    num_tiles: int
    tiles: int
    """[num_tiles, 3]: row of the block table, first token, tokens."""


class Limits(NamedTuple):
    """What a layer's softmax runs over besides the keys up to the query."""

    window: int
    """The last keys that a query sees, its own included; 0: all."""
    sinks: int
    """Address of float32 [kv_heads * G]: a score of each query head that takes weight and has no value; 0: none."""


class Workspace(NamedTuple):
    """Memory that a call may use."""

    threads: int
    counter: int
    """Address of an int64 that is 0."""
    scratch: int
    """Address of `scratch_elements` float32, of which the first LANES are 0."""


def scratch_elements(threads: int, heads: Heads) -> int:
    """Elements of scratch that `threads` threads need."""
    return LANES + threads * _thread_elements(heads)


@kernel
def _thread_elements(heads: Heads) -> int:
    return max(TILE_ROWS, heads.group) * (3 * heads.head_dim + SEGMENT + 4) + LANES


@kernel
def _store_part(thread: int, threads: int, qkv: int, heads: Heads, pages: Pages, plan: Plan) -> None:
    head_dim, block_size = heads.head_dim, heads.block_size
    query_heads = heads.kv_heads * heads.group
    width = (query_heads + 2 * heads.kv_heads) * head_dim
    for token in range(plan.num_tokens * thread // threads, plan.num_tokens * (thread + 1) // threads):
        position = int32_at(plan.positions, token)
        table = plan.tables + int32_at(plan.row_of_token, token) * plan.table_stride * 4
        block, offset = int32_at(table, position // block_size), position % block_size
        for head in range(heads.kv_heads):
            start = (block * heads.kv_heads + head) * head_dim * block_size
            key = qkv + (token * width + (query_heads + head) * head_dim) * 4
            for d in range(head_dim):
                put_float32(pages.keys, start + d * block_size + offset, float32_at(key, d))
            value = key + heads.kv_heads * head_dim * 4
            for d in range(0, head_dim, LANES):
                store(pages.values + (start + offset * head_dim + d) * 4, load(value + d * 4))


@kernel
def store_keys_and_values(threads: int, qkv: int, heads: Heads, pages: Pages, plan: Plan) -> None:
    """Write each token's keys and values into its sequence's blocks; qkv: float32 [tokens, kv_heads * (G + 2), D]."""
    used = max(1, min(threads, plan.num_tokens // _TOKENS_PER_THREAD))
    fork_join(_store_part, used, (qkv, heads, pages, plan))


@kernel
def _softmax_row(scores: int, begin: int, end: int, padded: int) -> tuple[float, float]:
    """Replace scores [begin, end) by e**(score - largest), the rest up to `padded` by 0; the largest, and their sum."""
    best = splat(_NEVER)
    for j in range(begin // LANES * LANES, end, LANES):
        best = maximum(best, drop_outside(load(scores + j * 4), begin - j, end - j))
    largest = max_lanes(best)
    total = splat(np.float32(0.0))
    for j in range(0, padded, LANES):
        weight = splat(np.float32(0.0))
        if j < end and j + LANES > begin:
            weight = exp(subtract(drop_outside(load(scores + j * 4), begin - j, end - j), splat(largest)))
            total = add(total, weight)
        store(scores + j * 4, weight)
    return largest, sum_lanes(total)


@kernel
def _window_start(position: int, window: int) -> int:
    """The first key that a query at `position` sees."""
    return max(0, position + 1 - window) if window > 0 else 0


@kernel
def _reciprocal_of_total(state: int, sinks: int, head: int) -> float:
    """What the weighted values are multiplied by; `head` counts the rank's query heads."""
    largest, total = float32_at(state, 0), float32_at(state, 1)
    if sinks == 0:
        return float(np.float32(1.0) / total)
    sink = float32_at(sinks, head)
    top = max(largest, sink)
    scale, extra = lane(exp(splat(np.float32(largest - top))), 0), lane(exp(splat(np.float32(sink - top))), 0)
    return float(scale / (total * scale + extra))


@kernel
def _merge_row(whole: int, whole_state: int, part: int, part_state: int, head_dim: int) -> None:
    """Fold one segment's row into the row so far: both are scaled to the larger of the two maxima.

    A state is (largest score, sum of weights).
    """
    old_largest, largest = float32_at(whole_state, 0), float32_at(part_state, 0)
    new_largest = max(largest, old_largest)
    old_scale = exp(splat(np.float32(old_largest - new_largest)))
    scale = exp(splat(np.float32(largest - new_largest)))
    for d in range(0, head_dim, LANES):
        scaled = multiply(load(part + d * 4), scale)
        store(whole + d * 4, fma(load(whole + d * 4), old_scale, scaled))
    total = float32_at(whole_state, 1) * lane(old_scale, 0) + float32_at(part_state, 1) * lane(scale, 0)
    put_float32(whole_state, 0, new_largest)
    put_float32(whole_state, 1, total)


@kernel
def _add_weighted(rows: int, weights: int, values: int, count: int, out: int, head_dim: int) -> None:
    """out[rows, D] += weights[rows, count] @ values[count, D]; rows of `weights` are SEGMENT apart."""
    stride = head_dim * 4
    d = 0
    while d + STRIP <= head_dim:
        at = out + d * 4
        strip_product(rows, weights, SEGMENT * 4, values + d * 4, stride, at, stride, at, stride, count)
        d += STRIP
    while d < head_dim:
        at = out + d * 4
        vector_product(rows, weights, SEGMENT * 4, values + d * 4, stride, at, stride, at, stride, count)
        d += LANES


@kernel
def _segment(
    rows: int,
    queries: int,
    scores: int,
    out: int,
    state: int,
    first: int,
    count: int,
    zeros: int,
    positions: int,
    table: int,
    kv_head: int,
    heads: Heads,
    pages: Pages,
    window: int,
) -> None:
    """Attention of a tile over keys [first, first + count): unnormalised `out` [rows, D] and states [rows, 2]."""
    head_dim, block_size = heads.head_dim, heads.block_size
    block_bytes = head_dim * block_size * 4
    for key in range(0, count, LANES):
        block = int32_at(table, (first + key) // block_size) * heads.kv_heads + kv_head
        source = pages.keys + block * block_bytes + (first + key) % block_size * 4
        target = scores + key * 4
        if key % block_size == 0:
            fetch(pages.values + block * block_bytes, block_bytes)
            if key + block_size < count:
                following = int32_at(table, (first + key) // block_size + 1) * heads.kv_heads + kv_head
                fetch(pages.keys + following * block_bytes, block_bytes)
        vector_product(rows, queries, head_dim * 4, source, block_size * 4, zeros, 0, target, SEGMENT * 4, head_dim)
    padded = (count + LANES - 1) // LANES * LANES
    for row in range(rows):
        position = int32_at(positions, row // heads.group)
        end = max(0, min(count, position + 1 - first))
        begin = max(0, _window_start(position, window) - first)
        if begin >= end:
            begin, end = 0, 0
        largest, total = _softmax_row(scores + row * SEGMENT * 4, begin, end, padded)
        put_float32(state, 2 * row, largest)
        put_float32(state, 2 * row + 1, total)
    for j in range(0, rows * head_dim, LANES):
        store(out + j * 4, splat(np.float32(0.0)))
    for key in range(0, count, block_size):
        block = int32_at(table, (first + key) // block_size) * heads.kv_heads + kv_head
        source = pages.values + block * head_dim * block_size * 4
        _add_weighted(rows, scores + key * 4, source, min(block_size, count - key), out, head_dim)


@kernel
def _attend_tile(
    scratch: int,
    zeros: int,
    qkv: int,
    out: int,
    positions: int,
    table: int,
    num_tokens: int,
    kv_head: int,
    heads: Heads,
    pages: Pages,
    limits: Limits,
) -> None:
    """One tile and KV head. qkv, out and positions start at the tile's first token."""
    group, head_dim = heads.group, heads.head_dim
    rows, row_bytes = num_tokens * group, head_dim * 4
    queries, whole, part = scratch, scratch + rows * row_bytes, scratch + 2 * rows * row_bytes
    scores = part + rows * row_bytes
    whole_state = scores + rows * SEGMENT * 4
    part_state = whole_state + 2 * rows * 4
    for token in range(num_tokens):
        source = qkv + (token * heads.kv_heads * (group + 2) + kv_head * group) * row_bytes
        for j in range(0, group * head_dim, LANES):
            scaled = multiply(load(source + j * 4), splat(np.float32(heads.scale)))
            store(queries + (token * group * head_dim + j) * 4, scaled)
    context = int32_at(positions, num_tokens - 1) + 1
    start = _window_start(int32_at(positions, 0), limits.window) // SEGMENT * SEGMENT
    for first in range(start, context, SEGMENT):
        count = min(SEGMENT, context - first)
        target, state = (part, part_state) if first > start else (whole, whole_state)
        _segment(
            rows,
            queries,
            scores,
            target,
            state,
            first,
            count,
            zeros,
            positions,
            table,
            kv_head,
            heads,
            pages,
            limits.window,
        )
        for row in range(rows if first > start else 0):
            position = int32_at(positions, row // group)
            # A row that saw nothing yet has zeros and the state (-inf, 0), onto which merging is exact.
            if position >= first and _window_start(position, limits.window) < first + count:
                at = row * row_bytes
                _merge_row(whole + at, whole_state + 8 * row, part + at, part_state + 8 * row, head_dim)
    for row in range(rows):
        target = out + ((row // group * heads.kv_heads + kv_head) * group + row % group) * row_bytes
        head = kv_head * group + row % group
        factor = splat(np.float32(_reciprocal_of_total(whole_state + 8 * row, limits.sinks, head)))
        for d in range(0, head_dim, LANES):
            store(target + d * 4, multiply(load(whole + row * row_bytes + d * 4), factor))


@kernel
def _attend_part(
    thread: int,
    threads: int,
    qkv: int,
    out: int,
    heads: Heads,
    pages: Pages,
    plan: Plan,
    limits: Limits,
    space: Workspace,
) -> None:
    own = space.scratch + (LANES + thread * _thread_elements(heads)) * 4
    token_bytes = heads.kv_heads * heads.head_dim * 4
    item = claim(space.counter)
    while item < plan.num_tiles * heads.kv_heads:
        tile, kv_head = plan.tiles + item // heads.kv_heads * 12, item % heads.kv_heads
        table = plan.tables + int32_at(tile, 0) * plan.table_stride * 4
        first, num_tokens = int32_at(tile, 1), int32_at(tile, 2)
        queries, target = qkv + first * (heads.group + 2) * token_bytes, out + first * heads.group * token_bytes
        positions = plan.positions + first * 4
        _attend_tile(own, space.scratch, queries, target, positions, table, num_tokens, kv_head, heads, pages, limits)
        item = claim(space.counter)


@kernel
def attend(qkv: int, out: int, heads: Heads, pages: Pages, plan: Plan, limits: Limits, space: Workspace) -> None:
    """out[tokens, kv_heads * G, D] = attention of the queries in qkv over their sequence's keys up to themselves."""
    used = min(space.threads, plan.num_tiles * heads.kv_heads)
    fork_join(_attend_part, used, (qkv, out, heads, pages, plan, limits, space))
