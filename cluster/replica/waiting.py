"""In which order prefills are served: by class, then by slack to the deadline. Knows no blocks, slots or steps.

Slack is `deadline - now - predicted remaining prefill time`, where `deadline` is the request's own or, if earlier, the
time by which its first token is wanted. `now` is the same for all who are compared, so `deadline - predicted time`
orders a heap for good. Three rules bend it:
- Slack beyond `patience` counts alike: the key is at most `arrival + patience`. So requests without a deadline go in
  order of arrival, and whoever waits is only overtaken by requests that arrive within its patience.
- Who waited for `patience` joins the first class, so no class starves.
- Who cannot finish its prefill in time any more goes last: serving it now would only make others late too. If merely
  its first token is late, that ends with its patience; if it cannot meet its deadline, it never does.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from cluster.replica.plan import SchedulerConfig
from cluster.replica.rates import PrefillRate
from cluster.replica.sequence import Phase, SequenceState

Urgency = tuple[bool, int, float, int, int]
"""(too late, class, key, arrival number, choice): smaller goes first."""

_Entry = tuple[Urgency | tuple[float], int, SequenceState]
"""(order, ticket, sequence) in a heap; outdated once the sequence has another ticket."""


class WaitingQueue:
    """Sequences without a slot, most urgent first."""

    def __init__(self, config: SchedulerConfig, rate: PrefillRate) -> None:
        self._by_slack = config.prefill_order == "slack"
        self._rate = rate
        self._ready: list[_Entry] = []
        self._late: list[_Entry] = []
        self._aging: list[_Entry] = []
        """By the end of their patience, those for whom it changes something."""
        self._tickets = 0
        self._pending: dict[SequenceState, int] = {}
        self.pending_tokens = 0
        """Tokens to be computed before all who wait or prefill can decode, cache hits left out as far as known."""

    def __len__(self) -> int:
        """Sequences whose prefill is not complete, those with a slot included."""
        return len(self._pending)

    def set_pending(self, sequence: SequenceState, tokens: int) -> None:
        """Tell how much prefill a sequence still needs; 0 ends the account."""
        self.pending_tokens += tokens - self._pending.pop(sequence, 0)
        if tokens:
            self._pending[sequence] = tokens

    def urgency(self, sequence: SequenceState, now: float) -> Urgency:
        """Where a sequence stands at `now`; comparable between waiting ones and those that prefill already."""
        request = sequence.request
        if not self._by_slack:
            return False, request.priority, 0.0, request.number, sequence.choice
        needed = self._pending.get(sequence, 0) * self._rate.seconds_per_token
        latest = min(request.deadline, request.first_token_by) - needed
        too_late = latest <= now and (now < request.patient_until or request.deadline - needed <= now)
        return too_late, request.priority, min(latest, request.patient_until), request.number, sequence.choice

    def push(self, sequence: SequenceState, pending_tokens: int) -> None:
        """Let a sequence wait that needs `pending_tokens` of prefill, as far as known."""
        self.set_pending(sequence, pending_tokens)
        sequence.phase = Phase.QUEUED
        self._tickets += 1
        sequence.ticket = self._tickets
        self._drop_outdated()
        heapq.heappush(self._ready, (self.urgency(sequence, -math.inf), self._tickets, sequence))
        request = sequence.request
        if not request.patience_ended and (request.priority > 0 or request.first_token_by < math.inf):
            heapq.heappush(self._aging, ((request.patient_until,), self._tickets, sequence))

    def peek(self, now: float) -> SequenceState | None:
        """The most urgent sequence that waits; those whose deadline has passed are left out."""
        self._end_patience(now)
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

    def remove(self, sequence: SequenceState) -> None:
        """Take a sequence out of the order; its heap entry is dropped when it comes up."""
        sequence.ticket = 0

    def _move(self, source: list[_Entry], target: list[_Entry], now: float, *, too_late: bool) -> None:
        """Move entries until the first of `source` belongs there."""
        for _ in self._valid(source):
            sequence = source[0][2]
            urgency = self.urgency(sequence, now)
            if urgency[0] is not too_late:
                return
            heapq.heappop(source)
            heapq.heappush(target, (urgency, sequence.ticket, sequence))

    def _end_patience(self, now: float) -> None:
        while self._aging and self._aging[0][0] <= (now,):
            _, ticket, sequence = heapq.heappop(self._aging)
            if sequence.ticket == ticket:
                sequence.request.end_patience()
                self.push(sequence, self._pending.get(sequence, 0))

    def _drop_outdated(self) -> None:
        """Keep the heaps, and the requests that their entries hold in memory, within twice of what waits."""
        for heap in (self._ready, self._late, self._aging):
            if len(heap) > 64 + 2 * len(self._pending):
                heap[:] = [entry for entry in heap if entry[2].ticket == entry[1]]
                heapq.heapify(heap)

    @staticmethod
    def _valid(heap: list[_Entry]) -> Iterator[None]:
        """Yield as long as the heap's first entry, outdated ones dropped, exists."""
        while heap:
            if heap[0][2].ticket == heap[0][1]:
                yield
            else:
                heapq.heappop(heap)
