"""One rank's life: connect to the engine, become a rank, run steps until told to stop. Runs with or without Ray.

The order is fixed: the engine hears of this process before anything slow begins. Whatever ends the connection, or
fails, ends the process at once: a half-dead rank would hold its peers in a collective, and tearing down a process
group whose peers are gone can hang.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from cluster.launch import WorkerSpec
from cluster.worker.bootstrap import Bootstrap, load_shard
from cluster.worker.channel import EngineChannel
from cluster.worker.state import WorkerState
from cluster.worker.stepper import Stepper
from cluster.worker.watchdog import Watchdog

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_ENGINE_LOST = 3
"""Exit codes: the engine said stop; this rank failed; the engine vanished."""

logger = logging.getLogger(__name__)


def exit_process(code: int) -> NoReturn:
    """End now, without clean-up that could wait for a peer."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class WorkerActor:
    """One rank. It has its process to itself."""

    def __init__(
        self,
        spec: WorkerSpec,
        bootstrap: Bootstrap = load_shard,
        exit_process: Callable[[int], NoReturn] = exit_process,
    ) -> None:
        self._spec = spec
        self._bootstrap = bootstrap
        self._exit = exit_process
        self._state = WorkerState()
        self._channel: EngineChannel | None = None
        self._failed = False

    async def start(self) -> None:
        """Connect to the engine; the rest goes on in the background and shows in the engine's status.

        Raises:
            OSError: the engine cannot be reached.
        """
        channel = await asyncio.to_thread(EngineChannel.connect, self._spec, self._engine_lost)
        self._channel = channel
        threading.Thread(target=self._live, args=(channel,), name="steps", daemon=True).start()

    async def status(self) -> bytes:
        """The serialized `WorkerReport` of this moment."""
        return self._state.report().SerializeToString()

    async def stop(self) -> None:
        """End the process."""
        self._end(EXIT_STOPPED)

    def _live(self, channel: EngineChannel) -> NoReturn:
        watchdog = Watchdog(self._state, channel.report)
        self._state.on_change = watchdog.wake
        watchdog.start()
        try:
            self._work(channel)
        except Exception as error:
            logger.exception("rank failed")
            self._failed = True
            self._state.fail(f"{type(error).__name__}: {error}")
            channel.try_report(self._state.report())
            self._end(EXIT_FAILED)

    def _work(self, channel: EngineChannel) -> NoReturn:
        runner = self._bootstrap(self._spec, self._state, channel.wait_rendezvous)
        stepper = Stepper(runner, self._spec.replica, self._spec.coordinates, on_pass=self._state.passed)
        self._state.enter("ready")
        logger.info("ready")
        while True:
            message = channel.next_step()
            output = stepper.step(message)
            self._state.finished(message.step)
            if output is not None:
                channel.answer(output)

    def _engine_lost(self, reason: str) -> None:
        """On the reading thread. The engine hangs up on a rank that has failed: that end has its own code."""
        stopped = self._channel is not None and self._channel.stopped
        logger.log(logging.INFO if stopped else logging.WARNING, "exit: %s", reason)
        self._end(EXIT_STOPPED if stopped else EXIT_FAILED if self._failed else EXIT_ENGINE_LOST)

    def _end(self, code: int) -> NoReturn:
        self._state.before_exit()
        self._exit(code)
