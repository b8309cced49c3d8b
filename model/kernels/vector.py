"""Sixteen float32 (or uint32) lanes as a value that kernels compute with. Knows memory addresses, no shapes.

Sixteen lanes are one register of AVX-512, two of AVX2, four of SSE or NEON; the bits are the same on all of them.
Addresses are byte addresses. Every operation rounds once (IEEE 754), `fma` included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import register_model

from model.kernels.compile import intrinsic, kernel

LANES = 16
BYTES = 4 * LANES

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_WORDS = ir.VectorType(_INT32, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


class _VectorType(types.Type):
    def __init__(self, name: str, llvm: ir.Type) -> None:
        super().__init__(name=name)
        self.llvm = llvm


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: _VectorType) -> None:
        super().__init__(manager, frontend_type, frontend_type.llvm)  # type: ignore[no-untyped-call]  # numba's


floats = _VectorType("float32x16", _FLOATS)
words = _VectorType("uint32x16", _WORDS)

Emit = Callable[..., Any]


def splat_value(builder: ir.IRBuilder, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
    """The scalar in every lane of a vector of that type."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _INT32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))


def _llvm(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic on vectors of one type."""
    vector = arguments[0].type
    signature = ir.FunctionType(vector, [vector] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def operation(result: types.Type, operands: tuple[types.Type, ...], emit: Emit) -> Callable[..., Any]:
    """A function for kernels with fixed operand types; `emit(builder, *operands)` writes it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        value = emit(builder, *arguments)
        return context.get_dummy_value() if result == types.void else value

    def one(typing_context: Any, a: Any) -> Any:
        return result(*operands), codegen

    def two(typing_context: Any, a: Any, b: Any) -> Any:
        return result(*operands), codegen

    def three(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
        return result(*operands), codegen

    def four(typing_context: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return result(*operands), codegen

    return intrinsic((one, two, three, four)[len(operands) - 1])


def _pointer(builder: ir.IRBuilder, address: ir.Value, pointee: ir.Type) -> ir.Value:
    return builder.inttoptr(address, pointee.as_pointer())


def _emit_load(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.load(_pointer(builder, address, _FLOATS), align=4)


def _emit_store(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    builder.store(value, _pointer(builder, address, _FLOATS), align=4)


def _lanes_between(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """Mask of the lanes in [low, high); the bounds fit 32 bits and may lie outside the vector."""
    lanes = ir.Constant(_WORDS, list(range(LANES)))
    above = builder.icmp_signed(">=", lanes, splat_value(builder, builder.trunc(low, _INT32), _WORDS))
    below = builder.icmp_signed("<", lanes, splat_value(builder, builder.trunc(high, _INT32), _WORDS))
    return builder.and_(above, below)


def _emit_load_range(builder: ir.IRBuilder, address: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    signature = ir.FunctionType(_FLOATS, [_FLOATS.as_pointer(), _INT32, _BITS, _FLOATS])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.masked.load.v16f32.p0v16f32")
    mask, zero = _lanes_between(builder, low, high), ir.Constant(_FLOATS, [0.0] * LANES)
    return builder.call(function, [_pointer(builder, address, _FLOATS), _INT32(4), mask, zero])


def _emit_load_first(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    return _emit_load_range(builder, address, _INT64(0), count)


def _emit_store_first(builder: ir.IRBuilder, address: ir.Value, value: ir.Value, count: ir.Value) -> None:
    signature = ir.FunctionType(ir.VoidType(), [_FLOATS, _FLOATS.as_pointer(), _INT32, _BITS])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.masked.store.v16f32.p0v16f32")
    mask = _lanes_between(builder, _INT64(0), count)
    builder.call(function, [value, _pointer(builder, address, _FLOATS), _INT32(4), mask])


def _emit_store_bytes(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    whole = ir.VectorType(ir.IntType(8), LANES)
    numbers = builder.trunc(builder.fptosi(value, _WORDS), whole)
    builder.store(numbers, _pointer(builder, address, whole), align=1)


def _emit_drop_outside(builder: ir.IRBuilder, value: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    never = ir.Constant(_FLOATS, [float("-inf")] * LANES)
    return builder.select(_lanes_between(builder, low, high), value, never)


def _emit_exponent_bits(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """2**value for whole `value` in [-126, 127], by writing the exponent field."""
    whole = builder.add(builder.fptosi(value, _WORDS), ir.Constant(_WORDS, [127] * LANES))
    return builder.bitcast(builder.shl(whole, ir.Constant(_WORDS, [23] * LANES)), _FLOATS)


load = operation(floats, (types.intp,), _emit_load)
"""load(address): sixteen consecutive elements."""
store = operation(types.void, (types.intp, floats), _emit_store)
"""store(address, value)"""
load_first = operation(floats, (types.intp, types.intp), _emit_load_first)
"""load_first(address, count): the other lanes are 0 and their memory is not touched."""
load_range = operation(floats, (types.intp,) * 3, _emit_load_range)
"""load_range(address, low, high): as `load_first`, for the lanes in [low, high)."""
store_first = operation(types.void, (types.intp, floats, types.intp), _emit_store_first)
"""store_first(address, value, count): the memory behind the other lanes is not touched."""
store_bytes = operation(types.void, (types.intp, floats), _emit_store_bytes)
"""store_bytes(address, value): whole numbers in [-128, 127] as sixteen int8."""
drop_outside = operation(floats, (floats, types.intp, types.intp), _emit_drop_outside)
"""drop_outside(value, low, high): minus infinity in the lanes that are not in [low, high)."""
splat = operation(floats, (types.float32,), lambda builder, x: splat_value(builder, x, _FLOATS))
"""splat(scalar): the same in every lane."""
add = operation(floats, (floats, floats), lambda builder, a, b: builder.fadd(a, b))
subtract = operation(floats, (floats, floats), lambda builder, a, b: builder.fsub(a, b))
multiply = operation(floats, (floats, floats), lambda builder, a, b: builder.fmul(a, b))
divide = operation(floats, (floats, floats), lambda builder, a, b: builder.fdiv(a, b))
fma = operation(floats, (floats,) * 3, lambda builder, a, b, c: _llvm(builder, "llvm.fma.v16f32", a, b, c))
"""fma(a, b, c): a * b + c, rounded once."""
maximum = operation(
    floats, (floats, floats), lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)
)
minimum = operation(
    floats, (floats, floats), lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b)
)
round_whole = operation(floats, (floats,), lambda builder, x: _llvm(builder, "llvm.rint.v16f32", x))
"""round_whole(x): to the nearest whole number, ties to even."""
_power_of_two = operation(floats, (floats,), _emit_exponent_bits)


def _emit_lane(builder: ir.IRBuilder, vector: ir.Value, index: ir.Value) -> ir.Value:
    return builder.extract_element(vector, builder.trunc(index, _INT32))


lane = operation(types.float32, (floats, types.intp), _emit_lane)
"""lane(vector, index): one element."""


def _emit_fold(combine: Emit) -> Emit:
    """Halve the vector until one lane is left: lanes i and i+8, then i+4, i+2, i+1. The order is always this one."""

    def emit(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        for distance in (8, 4, 2, 1):
            pattern = [(i + distance) % LANES for i in range(LANES)]
            moved = builder.shuffle_vector(vector, undefined, ir.Constant(_WORDS, pattern))
            vector = combine(builder, vector, moved)
        return builder.extract_element(vector, _INT32(0))

    return emit


sum_lanes = operation(types.float32, (floats,), _emit_fold(lambda builder, a, b: builder.fadd(a, b)))
"""sum_lanes(x): sum of the lanes in a fixed order."""
max_lanes = operation(
    types.float32, (floats,), _emit_fold(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
)
"""max_lanes(x): the largest lane."""


@kernel
def exp(x: Any) -> Any:
    """e**x to about 1 ulp; 0 below -87.3, held at e**88 above.

    Cody and Waite's reduction by multiples of ln 2 and the polynomial of Cephes' expf.
    """
    x = minimum(x, splat(88.0))
    kept = maximum(x, splat(-87.33654))
    n = round_whole(multiply(kept, splat(1.4426950408889634)))
    r = fma(n, splat(-0.693359375), kept)
    r = fma(n, splat(2.12194440e-4), r)
    p = fma(splat(1.9875691500e-4), r, splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    p = fma(p, r, splat(5.0000001201e-1))
    p = add(fma(p, multiply(r, r), r), splat(1.0))
    return zero_below(multiply(p, _power_of_two(n)), x, splat(-87.33654))


def _emit_zero_below(builder: ir.IRBuilder, value: ir.Value, x: ir.Value, limit: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered("<", x, limit), ir.Constant(_FLOATS, [0.0] * LANES), value)


zero_below = operation(floats, (floats,) * 3, _emit_zero_below)
"""zero_below(value, x, limit): `value`, but 0 in the lanes where x < limit."""


def _emit_split(builder: ir.IRBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Exponent e (a whole number) and mantissa in [sqrt(1/2), sqrt(2)) of positive normal numbers."""
    bits = builder.bitcast(x, _WORDS)
    offset = builder.sub(bits, ir.Constant(_WORDS, [0x3F3504F3] * LANES))
    exponent = builder.ashr(offset, ir.Constant(_WORDS, [23] * LANES))
    mantissa = builder.sub(bits, builder.shl(exponent, ir.Constant(_WORDS, [23] * LANES)))
    return builder.sitofp(exponent, _FLOATS), builder.bitcast(mantissa, _FLOATS)


_exponent = operation(floats, (floats,), lambda builder, x: _emit_split(builder, x)[0])
_mantissa = operation(floats, (floats,), lambda builder, x: _emit_split(builder, x)[1])
_where_zero = operation(
    floats,
    (floats, floats, floats),
    lambda builder, x, a, b: builder.select(builder.fcmp_ordered("==", x, ir.Constant(_FLOATS, [0.0] * LANES)), a, b),
)


@kernel
def _log_of_parts(exponent: Any, f: Any) -> Any:
    """log(2**exponent * (1 + f)) by the polynomial of Cephes' logf."""
    square = multiply(f, f)
    p = fma(splat(7.0376836292e-2), f, splat(-1.1514610310e-1))
    p = fma(p, f, splat(1.1676998740e-1))
    p = fma(p, f, splat(-1.2420140846e-1))
    p = fma(p, f, splat(1.4249322787e-1))
    p = fma(p, f, splat(-1.6668057665e-1))
    p = fma(p, f, splat(2.0000714765e-1))
    p = fma(p, f, splat(-2.4999993993e-1))
    p = fma(p, f, splat(3.3333331174e-1))
    p = multiply(p, multiply(f, square))
    p = fma(exponent, splat(-2.12194440e-4), p)
    p = add(f, fma(splat(-0.5), square, p))
    return fma(exponent, splat(0.693359375), p)


@kernel
def log(x: Any) -> Any:
    """Natural logarithm of positive normal numbers to about 1 ulp."""
    return _log_of_parts(_exponent(x), subtract(_mantissa(x), splat(1.0)))


@kernel
def log_complement(x: Any, complement: Any) -> Any:
    """log(1 - x) for x in (0, 1], where `complement` is 1 - x: exact to full precision also for tiny x."""
    exponent = _exponent(complement)
    f = _where_zero(exponent, subtract(splat(0.0), x), subtract(_mantissa(complement), splat(1.0)))
    return _log_of_parts(exponent, f)


@kernel
def silu(x: Any) -> Any:
    """x / (1 + e**-x) (Elfwing et al., 2017)."""
    return divide(x, add(splat(1.0), exp(subtract(splat(0.0), x))))
