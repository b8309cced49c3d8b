"""Fork and join on torch's own OpenMP threads. Knows no arithmetic.

Kernels and torch operators alternate within a step. Two thread pools would take the cores from each other, because an
idle OpenMP thread spins for a while; so kernels borrow the pool that torch loaded (GOMP_parallel, also exported by
LLVM's and Intel's OpenMP). Without one, everything runs on the calling thread.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding
import torch  # loads the OpenMP runtime whose threads are borrowed
from llvmlite import ir
from numba.core import cgutils, types

from model.kernels.compile import intrinsic

_FORK, _THREAD = "argosy_fork", "argosy_thread_number"


def _address(name: str) -> int:
    """Address of a C function of this process; 0 if there is none."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0


_fork_address, _thread_address = _address("GOMP_parallel"), _address("omp_get_thread_num")
_can_fork = bool(_fork_address and _thread_address)
# Compiled code refers to the functions by these names, so that it can be kept on disk and loaded anywhere.
_nothing = ctypes.CFUNCTYPE(None)(lambda: None)
_unused = ctypes.cast(_nothing, ctypes.c_void_p).value
llvmlite.binding.add_symbol(_FORK, _fork_address if _can_fork else _unused)
llvmlite.binding.add_symbol(_THREAD, _thread_address if _can_fork else _unused)


def num_threads() -> int:
    """Threads that a kernel may use: torch's setting, or 1 where its threads cannot be borrowed."""
    return torch.get_num_threads() if _can_fork else 1


@intrinsic
def fork_join(typing_context: Any, body: Any, threads: Any, arguments: Any) -> Any:
    """fork_join(body, threads, arguments): run body(thread, threads, *arguments) on each thread and wait for all.

    `body` is a kernel; it must not rely on all threads running at once. With one thread it is called directly.
    """
    body_signature = body.get_call_type(typing_context, (types.intp, types.intp, *arguments.types), {})

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        compiled = body.dispatcher.get_compile_result(body_signature)
        context.active_code_library.add_linking_library(compiled.library)
        data = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [values[1], values[2]]))
        trampoline = _trampoline(context, builder.module, compiled.fndesc, body_signature, data.type)
        byte_pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        fork_type = ir.FunctionType(ir.VoidType(), [trampoline.type, byte_pointer, int32, int32])
        fork = cgutils.get_or_insert_function(builder.module, fork_type, _FORK)
        packed = builder.bitcast(data, byte_pointer)
        with builder.if_else(builder.icmp_signed(">", values[1], values[1].type(1))) as (many, one):
            with many:
                builder.call(fork, [trampoline, packed, builder.trunc(values[1], int32), int32(0)])
            with one:
                members = cgutils.unpack_tuple(builder, values[2], len(arguments.types))
                inputs = [values[1].type(0), values[1], *members]
                context.call_internal_no_propagate(builder, compiled.fndesc, body_signature, inputs)
        return context.get_dummy_value()

    return types.void(body, types.intp, arguments), codegen


def _trampoline(context: Any, module: ir.Module, fndesc: Any, signature: Any, data_type: ir.Type) -> ir.Function:
    """A C function void(void *data) that unpacks (threads, arguments) and calls the body with its thread number."""
    function_type = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    function = ir.Function(module, function_type, name=module.get_unique_name("fork_body"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    packed = builder.load(builder.bitcast(function.args[0], data_type))
    threads, members = cgutils.unpack_tuple(builder, packed, 2)
    thread_type = ir.FunctionType(ir.IntType(32), [])
    thread = builder.call(cgutils.get_or_insert_function(module, thread_type, _THREAD), [])
    inputs = [builder.sext(thread, threads.type), threads]
    inputs += cgutils.unpack_tuple(builder, members, len(signature.args) - 2)
    context.call_internal_no_propagate(builder, fndesc, signature, inputs)
    builder.ret_void()
    return function


@intrinsic
def claim(typing_context: Any, counter: Any) -> Any:
    """claim(address of an int64): its value, then adds one; no two threads get the same."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        int64 = ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(values[0], int64.as_pointer()), int64(1), "monotonic")

    return types.intp(types.intp), codegen
