"""Decides which ranks are slow: alive, and holding up their stage. Knows what ranks counted; knows no sockets.

The ranks of a stage do equal work and wait for each other in every collective, so all of them finish a step together,
and only the time that each spent outside collectives tells who was waited for. A rank is compared with its peers, never
with its past: a machine that is slow as a whole has no slow rank. A stage of one rank has no peers, and is not judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from argosy.internal.v1 import step_pb2
from model.parallel.dims import RankCoordinates

WINDOW_SECONDS = 1.0
"""Ranks are compared over so long."""
WINDOWS_TO_CHANGE = 3
"""So many windows in a row must agree before a rank is called slow, or no longer slow."""
SLOW_FACTOR = 1.5
"""A slow rank takes more than this many times what its median peer takes, …"""
LEAST_SECONDS = 0.001
"""… and so much more a step."""
FEWEST_STEPS = 5
"""A window with fewer steps says nothing."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a rank counted since its start."""

    steps: int
    seconds: float
    """In passes, without waiting for others."""

    @classmethod
    def of(cls, figures: step_pb2.RankFigures) -> Work:
        steps = figures.prefill.steps + figures.decode.steps
        busy = figures.prefill.busy_seconds + figures.decode.busy_seconds
        return cls(steps, busy - figures.collective_seconds)


@dataclass(frozen=True, slots=True)
class Change:
    """A rank has become slow, or is no longer."""

    rank: RankCoordinates
    is_slow: bool
    step_seconds: float
    peer_seconds: float
    """Of the median peer."""


class Slowness:
    """Watches the ranks of one epoch."""

    def __init__(self, ranks: Iterable[RankCoordinates]) -> None:
        self.slow: set[RankCoordinates] = set()
        self._stages: dict[int, list[RankCoordinates]] = {}
        for rank in ranks:
            self._stages.setdefault(rank.stage, []).append(rank)
        self._begun_at: float | None = None
        self._before: dict[RankCoordinates, Work] = {}
        self._streaks: dict[RankCoordinates, int] = {}
        """Windows in a row that contradict what the rank is called."""

    def observe(self, now: float, work: Mapping[RankCoordinates, Work]) -> list[Change]:
        """Take in what every rank has last counted; what that changes. To be called several times a window.

        Args:
            now: monotonic seconds.
        """
        if self._begun_at is None or now - self._begun_at >= WINDOW_SECONDS:
            changes = self._close_window(work) if self._begun_at is not None else []
            self._begun_at, self._before = now, dict(work)
            return changes
        return []

    def _close_window(self, work: Mapping[RankCoordinates, Work]) -> list[Change]:
        changes = []
        for ranks in self._stages.values():
            paces = {rank: pace for rank in ranks if (pace := self._pace(rank, work)) is not None}
            if len(ranks) < 2 or len(paces) < len(ranks):
                continue
            for rank, pace in paces.items():
                peer = statistics.median(other for peer, other in paces.items() if peer != rank)
                if change := self._judge(rank, pace, peer):
                    changes.append(change)
        return changes

    def _pace(self, rank: RankCoordinates, work: Mapping[RankCoordinates, Work]) -> float | None:
        """Seconds a step in this window; None if there were too few."""
        before, after = self._before.get(rank), work.get(rank)
        if before is None or after is None or after.steps - before.steps < FEWEST_STEPS:
            return None
        return (after.seconds - before.seconds) / (after.steps - before.steps)

    def _judge(self, rank: RankCoordinates, pace: float, peer: float) -> Change | None:
        looks_slow = pace > SLOW_FACTOR * peer and pace - peer > LEAST_SECONDS
        if looks_slow == (rank in self.slow):
            self._streaks[rank] = 0
            return None
        self._streaks[rank] = self._streaks.get(rank, 0) + 1
        if self._streaks[rank] < WINDOWS_TO_CHANGE:
            return None
        self._streaks[rank] = 0
        self.slow ^= {rank}
        return Change(rank, looks_slow, pace, peer)
