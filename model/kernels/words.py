"""Sixteen uint32 lanes: counter-based random words, and the token ids that go with the best of float lanes.

The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from model.kernels.compile import kernel
from model.kernels.vector import LANES, floats, operation, splat_value, words

_INT32, _FLOAT = ir.IntType(32), ir.FloatType()
_WORDS, _FLOATS = ir.VectorType(_INT32, LANES), ir.VectorType(_FLOAT, LANES)
_LONGS = ir.VectorType(ir.IntType(64), LANES)
_ROUNDS = 10


def _emit_word(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    return splat_value(builder, builder.trunc(scalar, _INT32), _WORDS)


def _emit_sequence(builder: ir.IRBuilder, first: ir.Value) -> ir.Value:
    return builder.add(_emit_word(builder, first), ir.Constant(_WORDS, list(range(LANES))))


def _emit_high_product(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    product = builder.mul(builder.zext(a, _LONGS), builder.zext(b, _LONGS))
    return builder.trunc(builder.lshr(product, ir.Constant(_LONGS, [32] * LANES)), _WORDS)


def _emit_unit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    halves = builder.fadd(builder.uitofp(value, _FLOATS), ir.Constant(_FLOATS, [0.5] * LANES))
    return builder.fmul(halves, ir.Constant(_FLOATS, [2.0**-32] * LANES))


splat_word = operation(words, (types.intp,), _emit_word)
"""splat_word(integer): its low 32 bits in every lane."""
sequence = operation(words, (types.intp,), _emit_sequence)
"""sequence(first): first, first + 1, ..."""
exclusive_or = operation(words, (words, words), lambda builder, a, b: builder.xor(a, b))
low_product = operation(words, (words, words), lambda builder, a, b: builder.mul(a, b))
high_product = operation(words, (words, words), _emit_high_product)
"""high_product(a, b): the upper 32 bits of the 64-bit product."""
complement = operation(words, (words,), lambda builder, a: builder.not_(a))
to_unit = operation(floats, (words,), _emit_unit)
"""to_unit(a): (a + 1/2) / 2**32 in (0, 1]; with `complement`, both a number and 1 minus it to full precision."""
where_greater = operation(
    words,
    (floats, floats, words, words),
    lambda builder, a, b, x, y: builder.select(builder.fcmp_ordered(">", a, b), x, y),
)
"""where_greater(a, b, x, y): x in the lanes where a > b, else y."""
word_lane = operation(
    types.intp,
    (words, types.intp),
    lambda builder, a, i: builder.zext(builder.extract_element(a, builder.trunc(i, _INT32)), ir.IntType(64)),
)
"""word_lane(vector, index): one element."""


@kernel
def philox(counter: Any, second: int, third: int, fourth: int, key: int) -> Any:
    """Four random words a lane for the counters (counter, second, third, fourth) under a 64-bit key."""
    a, b, c, d = counter, splat_word(second), splat_word(third), splat_word(fourth)
    key_low, key_high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        first, other = splat_word(0xD2511F53), splat_word(0xCD9E8D57)
        upper, lower = high_product(first, a), low_product(first, a)
        a = exclusive_or(exclusive_or(high_product(other, c), b), splat_word(key_low))
        b = low_product(other, c)
        c = exclusive_or(exclusive_or(upper, d), splat_word(key_high))
        d = lower
        key_low, key_high = key_low + 0x9E3779B9, key_high + 0xBB67AE85
    return a, b, c, d
