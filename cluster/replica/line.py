"""The sequences of one tenant that wait, most urgent first. Knows no other tenants, nor what urgent means."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

from cluster.replica.sequence import SequenceState

Order: TypeAlias = tuple[bool, int, float, int, int]
"""(too late, class, key, arrival number, choice): smaller goes first."""

_Entry: TypeAlias = tuple["Order | tuple[float]", int, SequenceState]
"""(order, ticket, sequence) in a heap; outdated once the sequence has another ticket."""


class Line:
    """Those who can be served in time, those who cannot, and those whose patience ends."""

    def __init__(self, order: Callable[[SequenceState, float], Order]) -> None:
        """
        Args:
            order: where a sequence stands at a time; `-math.inf` is before any deadline.
        """
        self._order = order
        self._ready: list[_Entry] = []
        self._late: list[_Entry] = []
        self._aging: list[_Entry] = []
        """By the end of their patience, those for whom it changes something."""

    def __len__(self) -> int:
        """Entries, outdated ones included: 0 means that nobody waits."""
        return len(self._ready) + len(self._late)

    def push(self, sequence: SequenceState) -> None:
        """Let a sequence with a fresh ticket wait."""
        heapq.heappush(self._ready, (self._order(sequence, -math.inf), sequence.ticket, sequence))
        request = sequence.request
        if not request.patience_ended and (request.priority > 0 or request.first_token_by < math.inf):
            heapq.heappush(self._aging, ((request.patient_until,), sequence.ticket, sequence))

    def out_of_patience(self, now: float) -> Iterator[SequenceState]:
        """Take out, one by one, those whose patience has ended."""
        while self._aging and self._aging[0][0] <= (now,):
            _, ticket, sequence = heapq.heappop(self._aging)
            if sequence.ticket == ticket:
                yield sequence

    def peek(self, now: float) -> SequenceState | None:
        """The most urgent sequence; those whose deadline has passed are left out."""
        self._move(self._late, self._ready, now, too_late=False)  # prefill may have become faster
        self._move(self._ready, self._late, now, too_late=True)
        if self._ready:
            return self._ready[0][2]
        for _ in self._valid(self._late):
            sequence = self._late[0][2]
            if sequence.request.deadline > now:
                return sequence
            heapq.heappop(self._late)
        return None

    def drop_outdated(self, num_waiting: int) -> None:
        """Keep the heaps, and the requests that their entries hold in memory, within twice of what waits."""
        for heap in (self._ready, self._late, self._aging):
            if len(heap) > 64 + 2 * num_waiting:
                heap[:] = [entry for entry in heap if entry[2].ticket == entry[1]]
                heapq.heapify(heap)

    def _move(self, source: list[_Entry], target: list[_Entry], now: float, *, too_late: bool) -> None:
        """Move entries until the first of `source` belongs there."""
        for _ in self._valid(source):
            sequence = source[0][2]
            order = self._order(sequence, now)
            if order[0] is not too_late:
                return
            heapq.heappop(source)
            heapq.heappush(target, (order, sequence.ticket, sequence))

    @staticmethod
    def _valid(heap: list[_Entry]) -> Iterator[None]:
        """Yield as long as the heap's first entry, outdated ones dropped, exists."""
        while heap:
            if heap[0][2].ticket == heap[0][1]:
                yield
            else:
                heapq.heappop(heap)
