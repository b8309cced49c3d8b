"""What a device can do at its best, measured in a moment: the other half of utilisation. Knows torch, no model.

Best of several runs, since whatever else the machine does can only make one slower. Ranks that start together on one
machine share its cores and its memory, here as later: each measures about the share that it will have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PROBE_SECONDS = 0.08
"""For each of the two measurements."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Of one device, a second."""

    flops: float
    """Floating-point operations in a product of two square matrices of the model's dtype."""
    memory_bytes: float
    """Bytes read in a product of a matrix and a vector, as decoding reads weights."""


@torch.inference_mode()
def measure_peaks(device: torch.device, dtype: torch.dtype, seconds: float = PROBE_SECONDS) -> Peaks:
    """Measure a device for about twice `seconds`."""
    return Peaks(_peak_flops(device, dtype, seconds), _peak_bytes(device, dtype, seconds))


def _peak_flops(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    side = 768 if device.type == "cpu" else 8192
    square = torch.ones(side, side, device=device, dtype=dtype)
    product = torch.empty_like(square)
    return 2.0 * side**3 / _best(lambda: torch.mm(square, square, out=product), device, seconds)


def _peak_bytes(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    # Larger than any cache, or it would be the cache that is measured.
    rows, columns = (16384, 1024) if device.type == "cpu" else (65536, 8192)
    matrix = torch.ones(rows, columns, device=device, dtype=dtype)
    vector, result = torch.ones(columns, device=device, dtype=dtype), torch.empty(rows, device=device, dtype=dtype)
    read = matrix.numel() * matrix.element_size()
    return read / _best(lambda: torch.mv(matrix, vector, out=result), device, seconds)


def _best(run: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of the runs that fit in the time; at least three."""
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < end:
        _finish(device)
        began = time.perf_counter()
        run()
        _finish(device)
        best, runs = min(best, time.perf_counter() - began), runs + 1
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
