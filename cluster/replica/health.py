"""Decides when a rank counts as lost. Knows what was heard and when; knows no sockets, kills nothing.

An open port proves nothing: a stopped process keeps its sockets, and a rank that hangs in a collective still sends
heartbeats. So both are watched: that a rank speaks, and that its progress moves while it has work.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.protocol import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS

STEP_FACTOR = 5.0
"""A step may take this many times its predicted length."""

STARTING_SILENCE_SECONDS = 60.0
"""Imports and kernel compilation can hold the interpreter; the controller's limit on starts applies too."""

IDLE_SILENCE_SECONDS = 10 * HEARTBEAT_SECONDS
"""Nobody waits for an idle rank, so a busy machine gets the benefit of the doubt."""


class ObservedClock:
    """Time as far as its owner was awake to see it: a loop that itself stood still has missed nobody's heartbeat."""

    def __init__(self, now: float) -> None:
        self._last_tick = now
        self._missed = 0.0

    def tick(self, now: float, interval: float) -> None:
        """Must be called every `interval` seconds; what is later than twice that was not observed."""
        late = now - self._last_tick - interval
        if late > interval:
            self._missed += late
        self._last_tick = now

    def observed(self, now: float) -> float:
        return now - self._missed


@dataclass(slots=True)
class RankHealth:
    """What one rank last showed. Times are observed seconds."""

    heard_at: float
    moved_at: float
    progress: int = -1
    ready: bool = False
    finished_step: int = 0
    sent_step: int = 0

    @property
    def is_busy(self) -> bool:
        return self.sent_step > self.finished_step

    def heard(self, now: float, progress: int, finished_step: int) -> None:
        """A report or an answer arrived."""
        self.heard_at = now
        if progress != self.progress or finished_step > self.finished_step:
            self.progress, self.moved_at = progress, now
            self.finished_step = max(self.finished_step, finished_step)

    def given_step(self, now: float, step: int) -> None:
        """A step was sent; waiting for it starts now if there was none before it."""
        if not self.is_busy:
            self.moved_at = now
        self.sent_step = step

    def complaint(self, now: float, predicted_seconds: float) -> str | None:
        """Why the rank counts as lost, or None; `predicted_seconds` is the longest predicted step in flight."""
        silent = now - self.heard_at
        if not self.ready:
            return f"silent for {silent:.1f} s while starting" if silent > STARTING_SILENCE_SECONDS else None
        if not self.is_busy:
            return f"silent for {silent:.2f} s while idle" if silent > IDLE_SILENCE_SECONDS else None
        limit = max(DEAD_AFTER_SECONDS, STEP_FACTOR * predicted_seconds)
        if silent > limit:
            return f"silent for {silent:.2f} s in step {self.finished_step + 1} (limit {limit:.2f} s)"
        still = now - self.moved_at
        if still > limit:
            return f"no progress for {still:.2f} s in step {self.finished_step + 1} (limit {limit:.2f} s)"
        return None
