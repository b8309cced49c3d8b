"""A worker's heartbeat, on its own thread and timer: while the process can run at all, the engine hears from it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from argosy.internal.v1 import step_pb2
from cluster.protocol import HEARTBEAT_SECONDS
from cluster.worker.state import WorkerState


class Watchdog:
    """Sends the state every `HEARTBEAT_SECONDS`, and at once when told that it changed."""

    def __init__(self, state: WorkerState, send: Callable[[step_pb2.WorkerReport], None]) -> None:
        self._state = state
        self._send = send
        self._changed = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def wake(self) -> None:
        """Report now: the state moved."""
        self._changed.set()

    def _run(self) -> None:
        while True:
            try:
                self._send(self._state.report())
            except OSError:
                return  # the reading thread sees the same end and decides what it means
            self._changed.wait(HEARTBEAT_SECONDS)
            self._changed.clear()
