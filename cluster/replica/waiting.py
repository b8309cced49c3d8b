"""In which order prefills are served: by class, then by tenant, then by slack. Knows no blocks, slots or steps.

Slack is `deadline - now - predicted remaining prefill time`, where `deadline` is the request's own or, if earlier, the
time by which its first token is wanted. `now` is the same for all who are compared, so `deadline - predicted time`
orders a heap for good. Four rules bend it:
- A tenant that has had more device time than the least served one goes after it (`fair_share.py`), within its class.
- Slack beyond `patience` counts alike: the key is at most `arrival + patience`. So requests without a deadline go in
  order of arrival, and whoever waits is only overtaken by requests that arrive within its patience.
- Who waited for `patience` joins the first class, so no class starves.
- Who cannot finish its prefill in time any more goes last: serving it now would only make others late too. If merely
  its first token is late, that ends with its patience; if it cannot meet its deadline, it never does.
"""

from __future__ import annotations

from typing import TypeAlias

from cluster.replica.fair_share import Account, FairShares
from cluster.replica.line import Line, Order
from cluster.replica.plan import SchedulerConfig
from cluster.replica.rates import PrefillRate
from cluster.replica.sequence import Phase, SequenceState

Urgency: TypeAlias = tuple[bool, int, int, float, int, int]
"""(too late, class, quanta that its tenant is ahead, key, arrival number, choice): smaller goes first."""


class WaitingQueue:
    """Sequences without a slot, most urgent first."""

    def __init__(self, config: SchedulerConfig, rate: PrefillRate, shares: FairShares) -> None:
        self._by_slack = config.prefill_order == "slack"
        self._rate = rate
        self._shares = shares
        self._lines: dict[Account, Line] = {}
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
        too_late, priority, key, number, choice = self._order(sequence, now)
        return too_late, priority, self._shares.arrears(sequence.request.account), key, number, choice

    def push(self, sequence: SequenceState, pending_tokens: int) -> None:
        """Let a sequence wait that needs `pending_tokens` of prefill, as far as known."""
        self.set_pending(sequence, pending_tokens)
        sequence.phase = Phase.QUEUED
        self._tickets += 1
        sequence.ticket = self._tickets
        line = self._lines.setdefault(sequence.request.account, Line(self._order))
        line.drop_outdated(len(self._pending))
        line.push(sequence)

    def peek(self, now: float) -> SequenceState | None:
        """The most urgent sequence that waits; those whose deadline has passed are left out."""
        best: tuple[Urgency, SequenceState] | None = None
        for account, line in list(self._lines.items()):
            for sequence in line.out_of_patience(now):
                sequence.request.end_patience()
                self.push(sequence, self._pending.get(sequence, 0))
            first = line.peek(now)
            if first is None:
                if not line:
                    del self._lines[account]
                continue
            urgency = self.urgency(first, now)
            if best is None or urgency < best[0]:
                best = urgency, first
        return best[1] if best is not None else None

    def remove(self, sequence: SequenceState) -> None:
        """Take a sequence out of the order; its heap entry is dropped when it comes up."""
        sequence.ticket = 0

    def _order(self, sequence: SequenceState, now: float) -> Order:
        """Where a sequence stands among those of its tenant."""
        request = sequence.request
        if not self._by_slack:
            return False, request.priority, 0.0, request.number, sequence.choice
        needed = self._pending.get(sequence, 0) * self._rate.seconds_per_token
        latest = min(request.deadline, request.first_token_by) - needed
        too_late = latest <= now and (now < request.patient_until or request.deadline - needed <= now)
        return too_late, request.priority, min(latest, request.patient_until), request.number, sequence.choice
