"""What a worker says about itself: phase, bytes loaded, steps, progress. Knows no sockets and no tensors.

Written by the thread that works, read by the heartbeat's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from argosy.internal.v1 import step_pb2

Phase = Literal["starting", "importing", "loading", "warming", "ready"]


class WorkerState:
    """The one copy of a worker's state."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._phase: Phase = "starting"
        self._entered = monotonic()
        self._report = step_pb2.WorkerReport(phase="starting")
        self._progress: Callable[[], tuple[int, str]] = lambda: (0, "")
        self._waits: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)
        self.on_change: Callable[[], None] = lambda: None
        """Called when something moved that the engine should hear of at once."""
        self.before_exit: Callable[[], None] = lambda: None
        """Called when the process is about to end: tells ranks that wait for this one."""

    def enter(self, phase: Phase) -> None:
        """Move on to the next phase; how long the last one took is kept."""
        with self._lock:
            now = self._monotonic()
            self._report.phase_seconds[self._phase] = now - self._entered
            self._phase, self._entered = phase, now
            self._report.phase = phase
        self.on_change()

    def loaded(self, loaded_bytes: int, total_bytes: int) -> None:
        """Weights read so far, and in all."""
        with self._lock:
            self._report.loaded_bytes = loaded_bytes
            self._report.total_bytes = total_bytes

    def measured(self, peak_flops: float, peak_bytes: float) -> None:
        """What the device can do at its best, a second."""
        with self._lock:
            self._report.figures.peak_flops = peak_flops
            self._report.figures.peak_bytes = peak_bytes

    def watch_waits(self, waits: Callable[[], tuple[float, float]]) -> None:
        """Read from `waits` the seconds spent in collectives and for earlier stages, since start."""
        self._waits = waits

    def passed(self, has_prompt_tokens: bool, busy_seconds: float) -> None:
        """A pass is over that took `busy_seconds`, waiting for the stage before excluded."""
        with self._lock:
            figures = self._report.figures
            phase = figures.prefill if has_prompt_tokens else figures.decode
            phase.steps += 1
            phase.busy_seconds += busy_seconds

    def finished(self, step: int) -> None:
        """A step is over on this rank."""
        with self._lock:
            self._report.step = step

    def fail(self, failure: str) -> None:
        """The worker cannot go on: one line for the operator."""
        with self._lock:
            self._report.failure = failure

    def publish_rendezvous(self, address: str) -> None:
        """This rank opened the store where all ranks meet."""
        with self._lock:
            self._report.rendezvous_address = address
        self.on_change()

    def watch_progress(self, progress: Callable[[], tuple[int, str]]) -> None:
        """Read from `progress` how many collectives and layers have passed, and what is going on."""
        self._progress = progress

    def report(self) -> step_pb2.WorkerReport:
        """A copy of everything, with progress as of now: collectives passed and steps finished."""
        with self._lock:
            report = step_pb2.WorkerReport()
            report.CopyFrom(self._report)
        passed, report.where = self._progress()
        report.figures.collective_seconds, report.figures.receive_seconds = self._waits()
        report.progress = passed + report.step
        return report
