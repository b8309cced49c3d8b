"""How kernels are compiled: typed doors to numba. Knows no arithmetic."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import llvmlite.binding
import numba
from numba.extending import intrinsic as _numba_intrinsic

P = ParamSpec("P")
R = TypeVar("R")

HAS_AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
"""True if a 16-lane vector is one register; otherwise it takes two."""


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first call and keep the code on disk. Runs without the interpreter lock and raises nothing."""
    compiled = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)(function)
    return cast(Callable[P, R], compiled)


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call and that writes LLVM code."""
    return cast(Callable[..., Any], _numba_intrinsic(function))


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process of this machine compile inside the block; the others wait and then find its code on disk.

    Costs a look at one file once everything is compiled. The kernel frees the lock of a process that dies.
    """
    directory = Path(str(numba.config.CACHE_DIR))  # type: ignore[attr-defined]  # set at run time
    complete = directory / "complete"
    if complete.exists():
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        complete.touch()
