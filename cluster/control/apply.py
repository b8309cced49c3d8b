"""Carries a rollout out, step by step, and takes it back if one does not work out. Decides no steps, starts no process.

A replica is replaced where it is: drained, so that what runs there finishes or goes on elsewhere, then built again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from cluster.clock import Clock
from cluster.control.plan import WantedReplica
from cluster.control.reconcile import Drain, Phase, Record
from cluster.control.rollout import Action, Step, reverse
from cluster.ids import ReplicaId

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""Between looks how a step does."""
PLACE_SECONDS = 30.0
"""How long a replica may find no room before its step has failed."""


class Region(Protocol):
    """The controller, as far as a rollout needs it."""

    def record(self, replica_id: ReplicaId) -> Record | None:
        """How a replica stands."""
        ...

    async def want(self, wanted: WantedReplica) -> None:
        """From now on want this replica, in this shape; one that runs is not disturbed."""
        ...

    def forget(self, replica_id: ReplicaId) -> None:
        """From now on do not want it; whatever still runs is ended."""
        ...

    def order(self, replica_id: ReplicaId, drain: Drain) -> None:
        """Let it leave in order."""
        ...


class StepError(Exception):
    """A step did not work out; one sentence."""


class Rollout:
    """One change of a region."""

    def __init__(self, region: Region, clock: Clock, grace_seconds: float, start_seconds: float) -> None:
        """
        Args:
            grace_seconds: for running answers on a replica that leaves.
            start_seconds: a replica that is not ready by then counts as failed.
        """
        self._region = region
        self._clock = clock
        self._grace = grace_seconds
        self._start_seconds = start_seconds

    async def run(self, steps: Sequence[Step]) -> AsyncIterator[tuple[int, str]]:
        """Do all steps; yields (index, "running" | "done" | "taken back").

        Raises:
            StepError: one failed. All that was done is taken back by then, as far as that is possible.
        """
        for index, step in enumerate(steps):
            yield index, "running"
            try:
                await self._do(step)
            except StepError as error:
                logger.warning("apply: %s %s failed: %s", step.action.value, step.replica_id, error)
                for earlier in range(index, -1, -1):
                    await self._take_back(steps[earlier])
                    yield earlier, "taken back"
                raise StepError(f"{step.action.value} {step.replica_id}: {error}") from None
            yield index, "done"

    async def _do(self, step: Step) -> None:
        if step.after is None:
            self._region.order(step.replica_id, Drain(self._grace, restart=False))
            await self._until_rested(step.replica_id)
            self._region.forget(step.replica_id)
            return
        await self._region.want(step.after)
        before = self._region.record(step.replica_id)
        if step.action is Action.REPLACE:
            self._region.order(step.replica_id, Drain(self._grace, restart=True))
        await self._until_ready(step.replica_id, before)

    async def _take_back(self, step: Step) -> None:
        """Make it as it was. A replica that cannot come back now is wanted none the less, and tried for ever."""
        back = reverse(step)
        if back.after is None:
            self._region.forget(back.replica_id)
            return
        try:
            await self._do(back)
        except StepError as error:
            logger.error("apply: %s is not back yet: %s", back.replica_id, error)

    async def _until_ready(self, replica_id: ReplicaId, before: Record | None) -> None:
        """
        Raises:
            StepError: it failed, found no room, or took too long.
        """
        begun = self._clock.monotonic()
        old_epoch = before.epoch if before else 0
        while True:
            now = self._region.record(replica_id)
            waited = self._clock.monotonic() - begun - self._grace
            if now is not None and now.epoch > old_epoch:
                if now.phase is Phase.READY:
                    return
                if now.phase is Phase.FAILED or (now.phase is Phase.PENDING and now.reason and waited > PLACE_SECONDS):
                    raise StepError(now.reason)
            if waited > self._start_seconds:
                raise StepError(f"not ready within {self._start_seconds:.0f} s")
            await self._clock.sleep(LOOK_SECONDS)

    async def _until_rested(self, replica_id: ReplicaId) -> None:
        while (now := self._region.record(replica_id)) is not None and now.phase is not Phase.RESTING:
            await self._clock.sleep(LOOK_SECONDS)
