"""`ControlService.Apply`: a configuration as JSON becomes a rollout, told step by step. One at a time.

Knows messages; what a step is, and how it is done, is the rollout's business.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from argosy.internal.v1 import control_pb2
from cluster.clock import Clock
from cluster.config import ArgosyConfig, parse_config
from cluster.control.apply import Rollout, StepError
from cluster.control.controller import Controller
from cluster.control.rollout import Action, Step, steps, wanted_after
from cluster.errors import ConfigurationError, FieldViolation, Reason, ServiceError

logger = logging.getLogger(__name__)

DEFAULT_GRACE_SECONDS = 30.0

Remember = Callable[[str], Awaitable[None]]

_ACTIONS = {
    Action.START: control_pb2.APPLY_ACTION_START,
    Action.REPLACE: control_pb2.APPLY_ACTION_REPLACE,
    Action.STOP: control_pb2.APPLY_ACTION_STOP,
}
_STATES = {
    "running": control_pb2.APPLY_STATE_RUNNING,
    "done": control_pb2.APPLY_STATE_DONE,
    "taken back": control_pb2.APPLY_STATE_TAKEN_BACK,
}


class Applying:
    """Takes wanted states for one region."""

    def __init__(self, config: ArgosyConfig, controller: Controller, clock: Clock, remember: Remember) -> None:
        """`remember`: keeps a configuration that was applied, for whoever controls the region next."""
        self._remember = remember
        self._config = config
        self._controller = controller
        self._clock = clock
        self._running: asyncio.Task[None] | None = None

    async def apply(self, request: control_pb2.ApplyRequest) -> AsyncIterator[control_pb2.ApplyResponse]:
        """The events of one rollout.

        Raises:
            ServiceError: INVALID_FIELD, the configuration cannot be used; DUPLICATE, another rollout runs.
        """
        todo = self._steps(request.configuration)
        if not request.plan_only and self._running is not None and not self._running.done():
            raise ServiceError(Reason.DUPLICATE, "another configuration is being applied; wait for it")
        yield control_pb2.ApplyResponse(plan=control_pb2.ApplyPlan(steps=map(_message, todo)))
        if request.plan_only:
            return
        grace = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else DEFAULT_GRACE_SECONDS
        rollout = Rollout(self._controller, self._clock, grace, self._config.controller.start_timeout_seconds)
        events: asyncio.Queue[control_pb2.ApplyResponse] = asyncio.Queue()
        # Its own task: it goes on, or back, whether or not somebody listens.
        self._running = asyncio.create_task(self._carry_out(rollout, todo, request.configuration, events))
        while True:
            event = await events.get()
            yield event
            if event.HasField("finished"):
                return

    def _steps(self, text: str) -> list[Step]:
        try:
            config = parse_config(json.loads(text), source="configuration")
            if config.region != self._config.region:
                raise ConfigurationError(f"region: this is {self._config.region!r}, the file is for {config.region!r}")
            before = self._controller.wanted
            return steps(before, wanted_after(config, before))
        except (ValueError, ConfigurationError) as error:
            raise ServiceError(
                Reason.INVALID_FIELD, violations=(FieldViolation("configuration", str(error)),)
            ) from None

    async def _carry_out(
        self,
        rollout: Rollout,
        todo: Sequence[Step],
        configuration: str,
        events: asyncio.Queue[control_pb2.ApplyResponse],
    ) -> None:
        outcome = control_pb2.ApplyFinished(applied=True)
        try:
            async for index, state in rollout.run(todo):
                step = todo[index]
                logger.info("apply: %s %s: %s", step.action.value, step.replica_id, state)
                progress = control_pb2.ApplyProgress(step=index, state=_STATES[state])
                events.put_nowait(control_pb2.ApplyResponse(progress=progress))
            await self._remember(configuration)
        except StepError as error:
            outcome = control_pb2.ApplyFinished(applied=False, reason=str(error))
        except Exception as error:
            logger.exception("apply")
            outcome = control_pb2.ApplyFinished(applied=False, reason=f"{type(error).__name__}: {error}")
        events.put_nowait(control_pb2.ApplyResponse(finished=outcome))


def with_models_of(config: ArgosyConfig, configuration: str) -> ArgosyConfig:
    """The configuration with the models of one that was applied."""
    applied = parse_config(json.loads(configuration), source="applied configuration")
    return config.model_copy(update={"models": applied.models, "model_store": applied.model_store})


def _message(step: Step) -> control_pb2.ApplyStep:
    return control_pb2.ApplyStep(
        replica_id=step.replica_id,
        action=_ACTIONS[step.action],
        difference=step.difference,
        weight_bytes=step.weight_bytes,
        ranks=step.ranks,
    )
