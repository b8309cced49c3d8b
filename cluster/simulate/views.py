"""A router's picture of the fleet: load reports as they arrive, its own dispatches since, who holds which prefix. Knows
no policy, and of replicas only what they told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.prefix import BlockKey
from cluster.replica.plan import LoadSnapshot
from cluster.router.choose import StepCosts
from cluster.simulate.policies.base import ReplicaView

PrefixEvent = tuple[BlockKey, bool]
"""A key, and whether it is held from now on (else no longer)."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself at one moment."""

    made_at: float
    load: LoadSnapshot
    prefixes: Sequence[PrefixEvent]
    """Since the report before, in order."""


class PrefixIndex:
    """Which replicas hold which blocks: one bit a replica."""

    def __init__(self, num_replicas: int) -> None:
        self._all = (1 << num_replicas) - 1
        self._num_replicas = num_replicas
        self._holders: dict[BlockKey, int] = {}

    def apply(self, replica: int, events: Sequence[PrefixEvent]) -> None:
        """Take in what a replica said."""
        bit, holders = 1 << replica, self._holders
        for key, held in events:
            if held:
                holders[key] = holders.get(key, 0) | bit
            else:
                left = holders.get(key, 0) & ~bit
                if left:
                    holders[key] = left
                else:
                    holders.pop(key, None)

    def promise(self, replica: int, keys: Sequence[BlockKey]) -> None:
        """A replica was sent a prompt: it will hold these blocks soon."""
        self.apply(replica, [(key, True) for key in keys])

    def matched_blocks(self, keys: Sequence[BlockKey]) -> list[int]:
        """By replica, blocks of the longest prefix of `keys` that it holds."""
        matched = [0] * self._num_replicas
        alive = self._all
        depth = 0
        for key in keys:
            holding = alive & self._holders.get(key, 0)
            if holding != alive:
                _note(matched, alive & ~holding, depth)
                alive = holding
                if not alive:
                    return matched
            depth += 1
        _note(matched, alive, depth)
        return matched


@dataclass(slots=True)
class _Dispatch:
    """A request sent and, as far as reports go, not yet arrived."""

    arrives_at: float
    uncached_tokens: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What a router knows of a replica from configuration and directory."""

    region: int
    round_trip: float
    costs: StepCosts
    """As believed; the device may differ."""


class RouterView:
    """One router's picture of all replicas."""

    def __init__(self, facts: Sequence[ReplicaFacts], block_size: int, idle: LoadSnapshot) -> None:
        self._facts = facts
        self._block_size = block_size
        self._prefixes = PrefixIndex(len(facts))
        self._latest = [Report(float("-inf"), idle, ()) for _ in facts]
        self._on_the_way: list[deque[Report]] = [deque() for _ in facts]
        self._dispatched: list[deque[_Dispatch]] = [deque() for _ in facts]
        self._gone: set[int] = set()

    def hear(self, replica: int, report: Report) -> None:
        """A replica sends a report; it counts half a round trip later."""
        self._on_the_way[replica].append(report)

    def lose(self, replica: int) -> None:
        """A replica is found dead: choose it no more."""
        self._gone.add(replica)

    def dispatched(self, view: ReplicaView, now: float, keys: Sequence[BlockKey], num_tokens: int) -> float:
        """A prompt of `num_tokens` goes to a replica. Returns when it arrives."""
        uncached = max(1, num_tokens - view.cached_tokens)
        arrives_at = now + view.round_trip / 2
        self._dispatched[view.index].append(_Dispatch(arrives_at, uncached, -(-uncached // self._block_size)))
        self._prefixes.promise(view.index, keys)
        return arrives_at

    def look(self, keys: Sequence[BlockKey], num_tokens: int, now: float) -> list[ReplicaView]:
        """All replicas not known to be dead, for a prompt of `num_tokens` whose full blocks have these keys."""
        self._catch_up(now)
        views = []
        for index, (facts, matched) in enumerate(zip(self._facts, self._prefixes.matched_blocks(keys), strict=True)):
            if index in self._gone:
                continue
            load = self._latest[index].load
            underway = self._dispatched[index]
            views.append(
                ReplicaView(
                    index,
                    facts.region,
                    facts.round_trip,
                    load.running,
                    load.waiting + len(underway),
                    load.pending_prefill_tokens + sum(sent.uncached_tokens for sent in underway),
                    load.context_tokens,
                    min(load.total_blocks, load.used_blocks + sum(sent.num_blocks for sent in underway)),
                    load.total_blocks,
                    load.prefill_share,
                    # The last token is always computed: its logits are wanted.
                    min(matched * self._block_size, num_tokens - 1),
                    facts.costs,
                )
            )
        return views

    def _catch_up(self, now: float) -> None:
        for index, facts in enumerate(self._facts):
            queue = self._on_the_way[index]
            sent_by = now - facts.round_trip / 2
            if not queue or queue[0].made_at > sent_by:
                continue
            while queue and queue[0].made_at <= sent_by:
                self._latest[index] = queue.popleft()
                self._prefixes.apply(index, self._latest[index].prefixes)
            underway = self._dispatched[index]
            while underway and underway[0].arrives_at <= self._latest[index].made_at:
                underway.popleft()


def _note(matched: list[int], bits: int, depth: int) -> None:
    while bits:
        lowest = bits & -bits
        matched[lowest.bit_length() - 1] = depth
        bits ^= lowest
