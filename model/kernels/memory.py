"""Single numbers in memory, by address: what kernels read of plans and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from model.kernels.compile import intrinsic, kernel

_INT64 = ir.IntType(64)
_LINE = 64


def _element(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


def _reader(kind: ir.Type, result: types.Type) -> Callable[..., Any]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        value = builder.load(_element(builder, values[0], values[1], kind))
        return builder.sext(value, _INT64) if kind == ir.IntType(32) else value

    def read(typing_context: Any, address: Any, index: Any) -> Any:
        return result(types.intp, types.intp), codegen

    return intrinsic(read)


def _writer(kind: ir.Type, operand: types.Type) -> Callable[..., Any]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        value = builder.trunc(values[2], kind) if kind == ir.IntType(32) else values[2]
        builder.store(value, _element(builder, values[0], values[1], kind))
        return context.get_dummy_value()

    def write(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
        return types.void(types.intp, types.intp, operand), codegen

    return intrinsic(write)


def _fetch_line(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        byte_pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch_type = ir.FunctionType(ir.VoidType(), [byte_pointer, int32, int32, int32])
        prefetch = cgutils.get_or_insert_function(builder.module, prefetch_type, "llvm.prefetch.p0i8")
        builder.call(prefetch, [builder.inttoptr(values[0], byte_pointer), int32(0), int32(1), int32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


fetch_line = intrinsic(_fetch_line)
"""fetch_line(address): ask for the cache line there to be brought near; any address will do."""


@kernel
def fetch(address: int, num_bytes: int) -> None:
    """Ask for memory that is needed soon. Blocks of a KV cache lie anywhere, so the processor cannot guess the next."""
    for offset in range(0, num_bytes, _LINE):
        fetch_line(address + offset)


def _byte_at(typing_context: Any, address: Any, index: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return builder.zext(builder.load(_element(builder, values[0], values[1], ir.IntType(8))), _INT64)

    return types.intp(types.intp, types.intp), codegen


byte_at = intrinsic(_byte_at)
"""byte_at(address, index): element of a uint8 array."""
int32_at = _reader(ir.IntType(32), types.intp)
"""int32_at(address, index): element of an int32 array."""
int64_at = _reader(_INT64, types.intp)
"""int64_at(address, index): element of an int64 array."""
float32_at = _reader(ir.FloatType(), types.float32)
"""float32_at(address, index): element of a float32 array."""
put_int32 = _writer(ir.IntType(32), types.intp)
"""put_int32(address, index, value)"""
put_float32 = _writer(ir.FloatType(), types.float32)
"""put_float32(address, index, value)"""
