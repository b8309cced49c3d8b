"""Memory that passes reuse: outputs of layers and scratch of kernels, by name. Knows sizes, no arithmetic.

Each name and width has one buffer, grown to the largest pass so far: layers share it, and decoding allocates nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.matmul import scratch_elements
from model.kernels.threads import num_threads


class Workspace:
    """Buffers of one shard. Not for several threads: a pass at a time."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.threads = num_threads()
        """Threads that CPU kernels use; read when the shard is made."""
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._views: dict[tuple[str, int, int], Tensor] = {}
        self._rows = 0
        self._scratch = torch.zeros(scratch_elements(self.threads) if device.type == "cpu" else 0)
        self.scratch = self._scratch.data_ptr()
        """Address of scratch for `kernels.matmul`."""

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """A [rows, columns] tensor with whatever the last user of that name and width left in it."""
        view = self._views.get((name, rows, columns))
        if view is None:
            if rows != self._rows:
                self._views.clear()
                self._rows = rows
            buffer = self._buffers.get((name, columns))
            if buffer is None or buffer.shape[0] < rows:
                buffer = torch.empty(rows, columns, device=self.device, dtype=self.dtype)
                self._buffers[name, columns] = buffer
            view = self._views[name, rows, columns] = buffer[:rows]
        return view


def address_of(x_TK: Tensor) -> int:
    """Address of a tensor that a kernel reads row by row without gaps."""
    assert x_TK.is_contiguous(), "kernels read rows without gaps"
    return x_TK.data_ptr()
