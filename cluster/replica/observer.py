"""What an engine tells whoever watches it: requests that start, steps that go out and come back. Knows no metrics."""

from __future__ import annotations

from typing import Protocol

from cluster.replica.plan import StepPlan


class Observer(Protocol):
    """Watches one engine. Called on its loop, between steps: whatever it does, ranks may be waiting."""

    def request_started(self, queued_seconds: float) -> None:
        """A request is in a step for the first time."""

    def step_sent(self, now: float) -> None:
        """A step is on its way to the ranks."""

    def step_done(self, now: float, plan: StepPlan, seconds: float, *, in_flight: int) -> None:
        """A step ended; it took `seconds` at the output rank, and `in_flight` others are still out."""


class Unobserved:
    """Nobody watches."""

    def request_started(self, queued_seconds: float) -> None:
        """Nothing."""

    def step_sent(self, now: float) -> None:
        """Nothing."""

    def step_done(self, now: float, plan: StepPlan, seconds: float, *, in_flight: int) -> None:
        """Nothing."""
