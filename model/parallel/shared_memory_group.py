"""Sums and gathers over the ranks of one host through shared memory. Knows one segment and its counters, no rendezvous.

Each rank has a slot of two buffers, and a counter. A rank copies its part into its slot, publishes, and waits for the
others' counters. It may start the next operation in the other buffer at once: it comes back to this one only after
every rank has published that next operation, which each does after it has read this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from model.parallel.context import check_sizes
from model.parallel.progress import CollectiveError, CollectiveTimeout, ProgressCounter
from model.parallel.segment import Segment
from model.parallel.shared_memory import LEFT, Bytes

SLOT_BYTES = 1 << 20
"""One buffer of one rank. Larger tensors go in pieces of this size, which stay in the L2 cache."""
_LINE = 64
_NAMES = ("all_reduce", "all_gather", "all_to_all")
_ALL_REDUCE, _ALL_GATHER, _ALL_TO_ALL = range(3)


class _Buffer:
    """What one rank shows in one operation."""

    def __init__(self, memory: Bytes) -> None:
        self.label = memory[:_LINE].data.cast("q")
        """(operation, elements): ranks that got out of step must not add each other's bytes."""
        self.payload = torch.from_numpy(memory[_LINE:])


class SharedMemoryGroup:
    """The tensor ranks of one host.

    Sums are added in rank order, ((r0 + r1) + r2) + ..., in float32 for narrower floats: the same bits on every rank.
    """

    def __init__(
        self,
        namespace: str,
        rank: int,
        size: int,
        *,
        timeout_seconds: float,
        progress: ProgressCounter,
        slot_bytes: int = SLOT_BYTES,
    ) -> None:
        """Open the segment `namespace` together with the other ranks; errors as for `Segment`."""
        stride = _LINE + slot_bytes
        segment = Segment(
            namespace,
            rank,
            size,
            num_counters=size,
            data_bytes=2 * size * stride,
            timeout_seconds=timeout_seconds,
        )
        self.rank = rank
        self.size = size
        self._timeout_seconds = timeout_seconds
        self._progress = progress
        self._slot_bytes = slot_bytes
        self._counters = segment.counters
        buffers = [_Buffer(segment.data[index * stride :][:stride]) for index in range(2 * size)]
        self._buffers = (buffers[:size], buffers[size:])
        self._sequence = 0
        self._operations = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """See `TensorGroup.all_reduce`; in place where `x` is contiguous."""
        flat = x.contiguous().view(-1)
        self._progress.bump(f"all_reduce {self._sequence + 1}")
        capacity = self._slot_bytes // flat.element_size()
        for start in range(0, flat.numel(), capacity):
            self._reduce_piece(flat[start : start + capacity])
        self._progress.bump("compute")
        return flat.view(x.shape)

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """See `TensorGroup.all_gather`.

        Raises:
            ValueError: `sizes` does not fit this rank's `x` or the number of ranks.
        """
        check_sizes(x, sizes, self.rank, self.size)
        self._progress.bump(f"all_gather {self._sequence + 1}")
        rows = math.prod(x.shape[:-1])
        if rows * max(sizes) * x.element_size() <= self._slot_bytes:
            buffers = self._next_buffers()
            views = [
                _elements(buffer, x.dtype, rows * size).view(*x.shape[:-1], size)
                for buffer, size in zip(buffers, sizes, strict=True)
            ]
            views[self.rank].copy_(x)
            self._exchange(buffers, _ALL_GATHER, rows)
            gathered = torch.cat(views, dim=-1)
        else:
            gathered = torch.cat(self._gather_in_pieces(x, sizes, rows), dim=-1)
        self._progress.bump("compute")
        return gathered

    def all_to_all(self, rows_NH: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
        """See `TensorGroup.all_to_all`. Each rank shows all that it sends; receivers take their part of it."""
        self._progress.bump(f"all_to_all {self._sequence + 1}")
        width, capacity = rows_NH.shape[1], self._slot_bytes // rows_NH.element_size()
        sent = [sum(row) * width for row in counts]
        starts = [sum(row[: self.rank]) * width for row in counts]
        received = [rows_NH.new_empty(row[self.rank] * width) for row in counts]
        flat = rows_NH.contiguous().view(-1)
        for piece in range(0, max(sent), capacity):
            buffers = self._next_buffers()
            own = flat[piece : piece + capacity]
            _elements(buffers[self.rank], rows_NH.dtype, own.numel()).copy_(own)
            self._exchange(buffers, _ALL_TO_ALL, sum(sent))
            for buffer, start, part in zip(buffers, starts, received, strict=True):
                first, last = max(start, piece), min(start + part.numel(), piece + capacity)
                if first < last:
                    shown = _elements(buffer, rows_NH.dtype, last - piece)
                    part[first - start : last - start] = shown[first - piece :]
        self._progress.bump("compute")
        return torch.cat(received).view(-1, width)

    def leave(self) -> None:
        """Tell the others that this rank will not come again: their waits end at once."""
        self._counters[self.rank].publish(LEFT)

    def _reduce_piece(self, piece: Tensor) -> None:
        # Every rank sums everything: one sum shared out by sections reads less but waits twice, and measured no faster.
        buffers = self._next_buffers()
        views = [_elements(buffer, piece.dtype, piece.numel()) for buffer in buffers]
        views[self.rank].copy_(piece)
        self._exchange(buffers, _ALL_REDUCE, piece.numel())
        _sum_in_order(views, piece)

    def _gather_in_pieces(self, x: Tensor, sizes: Sequence[int], rows: int) -> list[Tensor]:
        parts = [x if peer == self.rank else x.new_empty(*x.shape[:-1], size) for peer, size in enumerate(sizes)]
        flat = [part.contiguous().view(-1) for part in parts]
        capacity = self._slot_bytes // x.element_size()
        for start in range(0, rows * max(sizes), capacity):
            buffers = self._next_buffers()
            pieces = [part[start : start + capacity] for part in flat]
            views = [_elements(buffer, x.dtype, piece.numel()) for buffer, piece in zip(buffers, pieces, strict=True)]
            views[self.rank].copy_(pieces[self.rank])
            self._exchange(buffers, _ALL_GATHER, rows)
            for peer in range(self.size):
                if peer != self.rank:
                    pieces[peer].copy_(views[peer])
        return parts

    def _next_buffers(self) -> list[_Buffer]:
        self._operations += 1
        return self._buffers[self._operations % 2]

    def _exchange(self, buffers: list[_Buffer], operation: int, elements: int) -> None:
        """Publish this rank's buffer and wait until every other rank has published its own for the same operation."""
        self._sequence += 1
        own = buffers[self.rank].label
        own[0], own[1] = operation, elements
        self._counters[self.rank].publish(self._sequence)
        for peer, counter in enumerate(self._counters):
            if peer == self.rank:
                continue
            if not counter.wait_for(self._sequence, self._timeout_seconds):
                self._fail(peer, operation, late=True)
            if counter.value >= LEFT:
                self._fail(peer, operation, late=False)
            label = buffers[peer].label
            if label[0] != operation or label[1] != elements:
                self.leave()
                raise CollectiveError(
                    f"rank {peer} is at {_NAMES[label[0]]} of {label[1]} elements, rank {self.rank} at "
                    f"{_NAMES[operation]} of {elements} (number {self._sequence}): the ranks are out of step"
                )

    def _fail(self, peer: int, operation: int, *, late: bool) -> NoReturn:
        self.leave()
        what = f"{_NAMES[operation]} number {self._sequence}, awaited by rank {self.rank} of {self.size}"
        if late:
            raise CollectiveTimeout(f"rank {peer} did not reach {what}, within {self._timeout_seconds:g} s")
        raise CollectiveError(f"rank {peer} left before {what}")


def _elements(buffer: _Buffer, dtype: torch.dtype, count: int) -> Tensor:
    """The first `count` elements of a buffer, not copied."""
    return buffer.payload[: count * dtype.itemsize].view(dtype)


def _sum_in_order(parts: Sequence[Tensor], out: Tensor) -> None:
    """Write ((parts[0] + parts[1]) + parts[2]) + ... to `out`, which overlaps none of them."""
    if out.is_floating_point() and out.element_size() < 4:
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        out.copy_(total)
        return
    torch.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        out.add_(part)
