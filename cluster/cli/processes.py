"""Processes of one `up`: the router as a child, signals as requests, and the certainty that nothing stays behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

import psutil

ORPHAN_GRACE_SECONDS = 3.0
"""For a process whose parent is gone to end in order."""
PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h"""


def process_age() -> float:
    """Seconds since the operating system started this process, the interpreter's own start included."""
    return time.time() - psutil.Process().create_time()


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGHUP into a request that the program looks at between its steps.

    The first signal asks; a second one ends the program and all its descendants at once.
    """

    def __init__(self, last_words: Callable[[], None] = lambda: None) -> None:
        self._event = threading.Event()
        self._last_words = last_words
        self.signal = 0

    def install(self) -> None:
        """Take the signals over. Ray takes SIGTERM when it starts, so call again after that."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past a request; True if there is one."""
        return self._event.wait(seconds)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            kill_descendants()
            self._last_words()
            os._exit(128 + number)
        self.signal = number
        self._event.set()


def end_with_parent() -> None:
    """From now on, end when standard input does: a pipe that nobody writes to, which closes when the parent is gone."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        # The replicas are going with the same parent: streams that have not ended by now never will.
        time.sleep(ORPHAN_GRACE_SECONDS)
        kill_descendants()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that `kill_descendants` finds them. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants(grace: float = 0.0) -> None:
    """End every process below this one: SIGTERM and `grace` seconds first, if any, then SIGKILL."""
    if grace:
        below = _descendants()
        _signal(below, signal.SIGTERM)
        psutil.wait_procs(below, timeout=grace)
    # A process that is being killed may start another meanwhile; a stopped one cannot.
    frozen: set[psutil.Process] = set()
    while fresh := set(_descendants()) - frozen:
        _signal(fresh, signal.SIGSTOP)
        frozen |= fresh
    _signal(frozen, signal.SIGKILL)
    psutil.wait_procs(frozen, timeout=5.0)


def _descendants() -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


class RouterProcess:
    """A router as a child that cannot outlive this process: its standard input is a pipe that closes with us."""

    def __init__(self, config_file: Path, log: Path) -> None:
        self._config_file = config_file
        self._log = log
        self._environment = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "cluster.cli", "router", "--exit-with-parent", "-f", str(self._config_file)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Its own session: a Ctrl-C in the terminal is for us, who then end the router in order.
                start_new_session=True,
            )

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def last_words(self) -> str:
        """The last line of its log that says something."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no output"

    def ask_to_end(self) -> None:
        """It finishes what runs."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, grace: float) -> None:
        """Until it has ended; it is killed if that takes longer than `grace` seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
