"""The inner loop of products with 8-bit and 4-bit weights: tiles of rows times a strip of columns. Knows no threads.

Inputs are 8-bit integers in groups of 32 neighbours, each with its own scale. A group's products are added exactly, in
integers; groups are added one after another in float32. So an element's bits depend on its row and column alone, and
tiles of any height may be mixed.

A row of inputs is, for each group, a record of INPUT_RECORD bytes: 32 integers, their scale, scale * sum, -128 * sum.
A strip of 8-bit weights is, for each group, [8, STRIP, 4] bytes (four neighbours of a column are one lane), biased by
128 to be unsigned; each column has one scale. A strip of 4-bit weights is, for each group, [4, STRIP, 4] bytes, whose
lower halves are the group's first sixteen rows and whose upper halves the others, then STRIP scales and STRIP minima in
float16: weight = scale * integer + minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from model.kernels.compile import CPU_FEATURES, HAS_AVX512, intrinsic
from model.kernels.dot import SUMS, constant, emit_dot, emit_dot_nibbles, split_nibbles
from model.kernels.tile import STRIP, STRIP_VECTORS
from model.kernels.vector import LANES, splat_value
from model.quantization import GROUP

INPUT_RECORD = 48
"""Bytes of a group of one row's inputs; the last four are unused."""
SCALE_AT, SCALED_SUM_AT, OFFSET_AT = 32, 36, 40
"""Where a record has its float32 scale, float32 scale * sum, int32 -128 * sum."""
BYTE_GROUP = GROUP * STRIP
"""Bytes of a group of a strip of 8-bit weights."""
NIBBLE_GROUP = GROUP // 2 * STRIP + 2 * 2 * STRIP
"""Bytes of a group of a strip of 4-bit weights."""
_HEIGHTS = (6, 4, 2, 1) if HAS_AVX512 else (2, 1)

_HALF, _FLOAT, _INT16, _INT64 = ir.HalfType(), ir.FloatType(), ir.IntType(16), ir.IntType(64)
_FLOATS, _HALVES = ir.VectorType(_FLOAT, LANES), ir.VectorType(_HALF, LANES)
_VECTOR_BYTES = 4 * LANES
_STEP_BYTES = STRIP_VECTORS * _VECTOR_BYTES


def _at(builder: ir.IRBuilder, address: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    place = builder.inttoptr(builder.add(address, _INT64(offset)), kind.as_pointer())
    return builder.load(place, align=1)


def _spread(builder: ir.IRBuilder, address: ir.Value, offset: int, vector: ir.VectorType) -> ir.Value:
    """The number there in every lane."""
    return splat_value(builder, _at(builder, address, offset, vector.element), vector)


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    signature = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, "llvm.fma.v16f32"), [a, b, c])


def _halves(builder: ir.IRBuilder, address: ir.Value, offset: int) -> ir.Value:
    """Finite float16 numbers as float32."""
    if CPU_FEATURES.get("f16c"):
        return builder.fpext(_at(builder, address, offset, _HALVES), _FLOATS)
    bits = builder.zext(_at(builder, address, offset, ir.VectorType(_INT16, LANES)), SUMS)
    sign = builder.shl(builder.and_(bits, constant(SUMS, 0x8000)), constant(SUMS, 16))
    # Exponent and mantissa, moved to where float32 has them, are 2**112 too small; subnormal numbers too.
    magnitude = builder.shl(builder.and_(bits, constant(SUMS, 0x7FFF)), constant(SUMS, 13))
    value = builder.fmul(builder.bitcast(magnitude, _FLOATS), ir.Constant(_FLOATS, [2.0**112] * LANES))
    return builder.bitcast(builder.or_(builder.bitcast(value, SUMS), sign), _FLOATS)


Grid = list[list[ir.Value]]
"""A register for each row and vector of a tile."""


class _Bytes:
    """8-bit weights with one scale a column."""

    group_bytes = BYTE_GROUP

    @staticmethod
    def add_group(builder: ir.IRBuilder, inputs: Sequence[ir.Value], w: ir.Value, totals: Grid) -> Grid:
        # A biased weight counts 128 too much of its input: the sum starts at what that will have added.
        sums = [[_spread(builder, row, OFFSET_AT, SUMS)] * STRIP_VECTORS for row in inputs]
        for step in range(GROUP // 4):
            for j in range(STRIP_VECTORS):
                weights = _at(builder, w, step * _STEP_BYTES + j * _VECTOR_BYTES, SUMS)
                for m, row in enumerate(inputs):
                    sums[m][j] = emit_dot(builder, sums[m][j], weights, _spread(builder, row, 4 * step, SUMS))
        scales = [_spread(builder, row, SCALE_AT, _FLOATS) for row in inputs]
        return [
            [
                _fma(builder, builder.sitofp(group, _FLOATS), scale, total)
                for group, total in zip(row_sums, row_totals, strict=True)
            ]
            for row_sums, row_totals, scale in zip(sums, totals, scales, strict=True)
        ]

    @staticmethod
    def finish(builder: ir.IRBuilder, totals: Grid, scales: ir.Value, bias: ir.Value) -> Grid:
        factors = [_at(builder, scales, j * _VECTOR_BYTES, _FLOATS) for j in range(STRIP_VECTORS)]
        starts = [_at(builder, bias, j * _VECTOR_BYTES, _FLOATS) for j in range(STRIP_VECTORS)]
        return [[_fma(builder, *each) for each in zip(row, factors, starts, strict=True)] for row in totals]


class _Nibbles:
    """4-bit weights with a scale and a minimum for each group of a column."""

    group_bytes = NIBBLE_GROUP

    @staticmethod
    def add_group(builder: ir.IRBuilder, inputs: Sequence[ir.Value], w: ir.Value, totals: Grid) -> Grid:
        sums = [[ir.Constant(SUMS, [0] * LANES)] * STRIP_VECTORS for _ in inputs]
        for step in range(GROUP // 8):
            for j in range(STRIP_VECTORS):
                packed = _at(builder, w, step * _STEP_BYTES + j * _VECTOR_BYTES, SUMS)
                for half, weights in enumerate(split_nibbles(builder, packed)):
                    for m, row in enumerate(inputs):
                        x = _spread(builder, row, GROUP // 2 * half + 4 * step, SUMS)
                        sums[m][j] = emit_dot_nibbles(builder, sums[m][j], weights, x)
        scales_at = GROUP // 2 * STRIP
        for j in range(STRIP_VECTORS):
            scales = _halves(builder, w, scales_at + 2 * LANES * j)
            minima = _halves(builder, w, scales_at + 2 * STRIP + 2 * LANES * j)
            for m, row in enumerate(inputs):
                factors = builder.fmul(scales, _spread(builder, row, SCALE_AT, _FLOATS))
                total = _fma(builder, builder.sitofp(sums[m][j], _FLOATS), factors, totals[m][j])
                totals[m][j] = _fma(builder, minima, _spread(builder, row, SCALED_SUM_AT, _FLOATS), total)
        return totals

    @staticmethod
    def finish(builder: ir.IRBuilder, totals: Grid, scales: ir.Value, bias: ir.Value) -> Grid:
        starts = [_at(builder, bias, j * _VECTOR_BYTES, _FLOATS) for j in range(STRIP_VECTORS)]
        return [[builder.fadd(*each) for each in zip(row, starts, strict=True)] for row in totals]


_Format = type[_Bytes] | type[_Nibbles]


@dataclass(frozen=True, slots=True)
class _Operands:
    """Addresses of a tile: its rows of inputs and outputs (with strides), the strip's weights, scales, bias."""

    x: ir.Value
    x_stride: ir.Value
    w: ir.Value
    scales: ir.Value
    bias: ir.Value
    y: ir.Value
    y_stride: ir.Value
    groups: ir.Value

    def rows(self, builder: ir.IRBuilder, first: ir.Value, stride: ir.Value, height: int) -> list[ir.Value]:
        return [builder.add(first, builder.mul(_INT64(m), stride)) for m in range(height)]


def _emit_tile(builder: ir.IRBuilder, kind: _Format, height: int, at: _Operands) -> None:
    rows = at.rows(builder, at.x, at.x_stride, height)
    zero = ir.Constant(_FLOATS, [0.0] * LANES)
    before, loop, done = builder.block, builder.append_basic_block("group"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    index, offset, w = (builder.phi(_INT64) for _ in range(3))
    totals = [[builder.phi(_FLOATS) for _ in range(STRIP_VECTORS)] for _ in rows]
    inputs = [builder.add(row, offset) for row in rows]
    results = kind.add_group(builder, inputs, w, [list(row) for row in totals])
    advanced = [builder.add(index, _INT64(1)), builder.add(offset, _INT64(INPUT_RECORD))]
    advanced.append(builder.add(w, _INT64(kind.group_bytes)))
    phis = [index, offset, w, *(phi for row in totals for phi in row)]
    firsts = [_INT64(0), _INT64(0), at.w] + [zero] * (height * STRIP_VECTORS)
    followings = [*advanced, *(value for row in results for value in row)]
    for phi, first, following in zip(phis, firsts, followings, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", advanced[0], at.groups), loop, done)
    builder.position_at_end(done)
    finished = kind.finish(builder, results, at.scales, at.bias)
    for row, target in zip(finished, at.rows(builder, at.y, at.y_stride, height), strict=True):
        for j, value in enumerate(row):
            place = builder.inttoptr(builder.add(target, _INT64(j * _VECTOR_BYTES)), _FLOATS.as_pointer())
            builder.store(value, place, align=4)


def _build(kind: _Format) -> Callable[..., Any]:
    """A product of any number of rows, cut greedily into tiles."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        rows, x, x_stride, w, scales, bias, y, y_stride, groups = values
        finished = cgutils.alloca_once_value(builder, _INT64(0))
        for height in _HEIGHTS:
            test, body, after = (builder.append_basic_block(f"{part}_{height}") for part in ("test", "tile", "after"))
            builder.branch(test)
            builder.position_at_end(test)
            m = builder.load(finished)
            builder.cbranch(builder.icmp_signed(">=", builder.sub(rows, m), _INT64(height)), body, after)
            builder.position_at_end(body)
            x_tile, y_tile = (builder.add(a, builder.mul(m, s)) for a, s in ((x, x_stride), (y, y_stride)))
            _emit_tile(builder, kind, height, _Operands(x_tile, x_stride, w, scales, bias, y_tile, y_stride, groups))
            builder.store(builder.add(m, _INT64(height)), finished)
            builder.branch(test)
            builder.position_at_end(after)
        return context.get_dummy_value()

    def product(
        typing_context: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        w: Any,
        scales: Any,
        bias: Any,
        y: Any,
        y_stride: Any,
        groups: Any,
    ) -> Any:
        return types.void(*[types.intp] * 9), codegen

    return intrinsic(product)


byte_strip_product = _build(_Bytes)
"""byte_strip_product(rows, x, x_stride, w, scales, bias, y, y_stride, groups): STRIP columns; strides in bytes."""
nibble_strip_product = _build(_Nibbles)
"""nibble_strip_product(...): as `byte_strip_product`; `scales` is not read."""
