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


def _cpu_features() -> dict[str, bool]:
    """What the processor that is compiled for can do, by LLVM's names: this one, or the one that numba is told of."""
    chosen: str | None = numba.config.CPU_FEATURES  # type: ignore[attr-defined]  # set at run time
    if chosen is None:
        return dict(llvmlite.binding.get_host_cpu_features())
    return {item[1:]: item.startswith("+") for item in chosen.split(",") if item}


CPU_FEATURES = _cpu_features()
HAS_AVX512 = CPU_FEATURES.get("avx512f", False)
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
