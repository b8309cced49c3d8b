"""Products of bytes added up in fours, exact in 32-bit integers. Knows what processors have for it, no matrices.

    dot(sums, weights, inputs)[i] = sums[i] + weights[4i] * inputs[4i] + ... + weights[4i + 3] * inputs[4i + 3]

Weights are unsigned, inputs signed; sixteen sums. Integers do not round, so every processor gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

from model.kernels.compile import CPU_FEATURES
from model.kernels.vector import LANES

_INT8, _INT16, _INT32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
SUMS = ir.VectorType(_INT32, LANES)
"""A register of sums; four bytes a lane are operands too."""
_BYTES = ir.VectorType(_INT8, 4 * LANES)
_HALF_SUMS, _HALF_PAIRS, _HALF_BYTES = (
    ir.VectorType(_INT32, LANES // 2),
    ir.VectorType(_INT16, LANES),
    ir.VectorType(_INT8, 2 * LANES),
)

EmitDot = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]
"""(builder, sums, weights, inputs) to sums; all of type `SUMS`."""


def constant(vector: ir.VectorType, value: int) -> ir.Constant:
    """The value in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), operands)


def _emit_vnni(builder: ir.IRBuilder, sums: ir.Value, weights: ir.Value, inputs: ir.Value) -> ir.Value:
    """One instruction (AVX-512 VNNI)."""
    operands = builder.bitcast(weights, _BYTES), builder.bitcast(inputs, _BYTES)
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", SUMS, sums, *operands)


def _halves(builder: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    """Lower and upper half of a register of sums."""
    undefined = ir.Constant(value.type, ir.Undefined)
    each = range(LANES // 2), range(LANES // 2, LANES)
    return [builder.shuffle_vector(value, undefined, ir.Constant(_HALF_SUMS, list(lanes))) for lanes in each]


def _join(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    return builder.shuffle_vector(low, high, ir.Constant(SUMS, list(range(LANES))))


def _emit_avx2_nibbles(builder: ir.IRBuilder, sums: ir.Value, weights: ir.Value, inputs: ir.Value) -> ir.Value:
    """AVX2, weights up to 128: two products fit 16 bits."""
    return builder.add(sums, _emit_pairs(builder, weights, inputs, 1))


def _emit_pairs(builder: ir.IRBuilder, weights: ir.Value, inputs: ir.Value, factor: int) -> ir.Value:
    results = []
    for w, x in zip(_halves(builder, weights), _halves(builder, inputs), strict=True):
        operands = builder.bitcast(w, _HALF_BYTES), builder.bitcast(x, _HALF_BYTES)
        pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _HALF_PAIRS, *operands)
        results.append(_call(builder, "llvm.x86.avx2.pmadd.wd", _HALF_SUMS, pairs, constant(_HALF_PAIRS, factor)))
    return _join(builder, *results)


def _emit_avx2_bytes(builder: ir.IRBuilder, sums: ir.Value, weights: ir.Value, inputs: ir.Value) -> ir.Value:
    """AVX2, any weights: 16 bits do not hold two products, but those of each half of a weight."""
    low, high = split_nibbles(builder, weights)
    sums = builder.add(sums, _emit_pairs(builder, low, inputs, 1))
    return builder.add(sums, _emit_pairs(builder, high, inputs, 16))


def _emit_anywhere(builder: ir.IRBuilder, sums: ir.Value, weights: ir.Value, inputs: ir.Value) -> ir.Value:
    """Any processor, byte by byte of each lane."""
    for shift in range(0, 32, 8):
        w = builder.and_(builder.lshr(weights, constant(SUMS, shift)), constant(SUMS, 255))
        x = builder.ashr(builder.shl(inputs, constant(SUMS, 24 - shift)), constant(SUMS, 24))
        sums = builder.add(sums, builder.mul(w, x))
    return sums


def split_nibbles(builder: ir.IRBuilder, packed: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The lower and the upper four bits of each byte."""
    mask = constant(SUMS, 0x0F0F0F0F)
    return builder.and_(packed, mask), builder.and_(builder.lshr(packed, constant(SUMS, 4)), mask)


def _choose() -> tuple[EmitDot, EmitDot]:
    if CPU_FEATURES.get("avx512vnni") and CPU_FEATURES.get("avx512f"):
        return _emit_vnni, _emit_vnni
    if CPU_FEATURES.get("avx2"):
        return _emit_avx2_bytes, _emit_avx2_nibbles
    return _emit_anywhere, _emit_anywhere


emit_dot, emit_dot_nibbles = _choose()
"""For any weights, and for weights of at most 15."""
