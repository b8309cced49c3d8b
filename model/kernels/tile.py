"""The inner loop of every product here: tiles of rows times a strip of columns, held in registers. Knows no threads.

    y[m, n] = init[m, n] + x[m, 0] * w[0, n] + x[m, 1] * w[1, n] + ...

Each step is one fused multiply-add, in this order.

An element's bits depend on its row of x, its column of w and its init alone, so tiles of any height may be mixed.
Addresses and strides (from one row to the next) are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from model.kernels.compile import HAS_AVX512, intrinsic
from model.kernels.vector import BYTES, LANES

STRIP_VECTORS = 2 if HAS_AVX512 else 1
STRIP = STRIP_VECTORS * LANES
"""Columns of a strip: with the heights below, the sums fill all registers but a few."""
_HEIGHTS = (12, 8, 4, 3, 2, 1) if HAS_AVX512 else (6, 4, 3, 2, 1)
_NARROW_HEIGHTS = (12, 6, 3, 2, 1) if HAS_AVX512 else (6, 3, 2, 1)

_OUTER_CACHE = 1
"""LLVM's locality of a prefetch: a strip is larger than the innermost cache."""

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix in memory: the address of its first element and the stride of its rows."""

    address: ir.Value
    stride: ir.Value

    def row(self, builder: ir.IRBuilder, index: ir.Value) -> ir.Value:
        return builder.add(self.address, builder.mul(index, self.stride))

    def down(self, builder: ir.IRBuilder, rows: ir.Value) -> _Matrix:
        return _Matrix(self.row(builder, rows), self.stride)

    def cell(self, builder: ir.IRBuilder, row: int, vector: int) -> ir.Value:
        address = builder.add(self.row(builder, _INT64(row)), _INT64(vector * BYTES))
        return builder.inttoptr(address, _VECTOR.as_pointer())


def _emit_tile(
    builder: ir.IRBuilder,
    height: int,
    vectors: int,
    x: _Matrix,
    w: _Matrix,
    init: _Matrix,
    y: _Matrix,
    depth: ir.Value,
    ahead: _Matrix | None,
) -> None:
    """One tile: `height` rows of `vectors` vectors. With each row of w it asks for the row of `ahead` of that index."""
    fma_type = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = cgutils.get_or_insert_function(builder.module, fma_type, "llvm.fma.v16f32")
    grid = [(m, j) for m in range(height) for j in range(vectors)]
    start = [builder.load(init.cell(builder, m, j), align=4) for m, j in grid]
    rows = [builder.inttoptr(x.row(builder, _INT64(m)), _FLOAT.as_pointer()) for m in range(height)]
    before, loop, done = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    k, w_row = builder.phi(_INT64), builder.phi(_INT64)
    sums = [builder.phi(_VECTOR) for _ in grid]
    strip = [builder.load(_Matrix(w_row, w.stride).cell(builder, 0, j), align=4) for j in range(vectors)]
    spread = [_broadcast(builder, builder.load(builder.gep(row, [k]))) for row in rows]
    results = [builder.call(fma, [spread[m], strip[j], sums[i]]) for i, (m, j) in enumerate(grid)]
    next_k, next_row = builder.add(k, _INT64(1)), builder.add(w_row, w.stride)
    if ahead is not None:
        _emit_prefetch(builder, ahead.row(builder, k), vectors)
    for phi, first, following in zip(
        (k, w_row, *sums), (_INT64(0), w.address, *start), (next_k, next_row, *results), strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, done)
    builder.position_at_end(done)
    for (m, j), result in zip(grid, results, strict=True):
        builder.store(result, y.cell(builder, m, j), align=4)


def _emit_prefetch(builder: ir.IRBuilder, address: ir.Value, vectors: int) -> None:
    """Ask for some vectors to be brought near: memory is read while the sums are computed, not between them."""
    byte_pointer = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte_pointer, _INT32, _INT32, _INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
    for j in range(vectors):
        line = builder.inttoptr(builder.add(address, _INT64(j * BYTES)), byte_pointer)
        builder.call(prefetch, [line, _INT32(0), _INT32(_OUTER_CACHE), _INT32(1)])


def _broadcast(builder: ir.IRBuilder, element: ir.Value) -> ir.Value:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, element, _INT32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES))


def _build(heights: tuple[int, ...], vectors: int, *, streams: bool = False) -> Callable[..., Any]:
    """A product of any number of rows, cut greedily into tiles of these heights.

    If it `streams`, it takes one more argument: where the weights that are needed next begin.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        rows, x, x_stride, w, w_stride, init, init_stride, y, y_stride, depth = values[:10]
        finished = cgutils.alloca_once_value(builder, _INT64(0))
        if streams:
            # The tiles share the work of asking for one strip: each asks for a part of every row.
            tiles = builder.add(builder.sdiv(builder.sub(rows, _INT64(1)), _INT64(heights[0])), _INT64(1))
            step = builder.sdiv(_INT64(vectors * BYTES), tiles)
            next_part = cgutils.alloca_once_value(builder, values[10])
        for height in heights:
            test, body, after = (builder.append_basic_block(f"{part}_{height}") for part in ("test", "tile", "after"))
            builder.branch(test)
            builder.position_at_end(test)
            m = builder.load(finished)
            left = builder.sub(rows, m)
            builder.cbranch(builder.icmp_signed(">=", left, _INT64(height)), body, after)
            builder.position_at_end(body)
            x_tile, init_tile, y_tile = (
                _Matrix(address, stride).down(builder, m)
                for address, stride in ((x, x_stride), (init, init_stride), (y, y_stride))
            )
            ahead = _Matrix(builder.load(next_part), step) if streams else None
            _emit_tile(builder, height, vectors, x_tile, _Matrix(w, w_stride), init_tile, y_tile, depth, ahead)
            builder.store(builder.add(m, _INT64(height)), finished)
            if ahead is not None:
                builder.store(ahead.row(builder, depth), next_part)
            builder.branch(test)
            builder.position_at_end(after)
        return context.get_dummy_value()

    def product(
        typing_context: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        w: Any,
        w_stride: Any,
        init: Any,
        init_stride: Any,
        y: Any,
        y_stride: Any,
        depth: Any,
    ) -> Any:
        return types.void(*[types.intp] * 10), codegen

    def streamed_product(
        typing_context: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        w: Any,
        w_stride: Any,
        init: Any,
        init_stride: Any,
        y: Any,
        y_stride: Any,
        depth: Any,
        next_weights: Any,
    ) -> Any:
        return types.void(*[types.intp] * 11), codegen

    return intrinsic(streamed_product if streams else product)


strip_product = _build(_HEIGHTS, STRIP_VECTORS)
"""strip_product(rows, x, x_stride, w, w_stride, init, init_stride, y, y_stride, depth): STRIP columns; depth >= 1."""
streamed_strip_product = _build(_HEIGHTS, STRIP_VECTORS, streams=True)
"""streamed_strip_product(..., depth, next_weights): as `strip_product`; meanwhile the next strip is fetched."""
vector_product = _build(_NARROW_HEIGHTS, 1)
"""vector_product(...): as `strip_product`, LANES columns."""
