"""How output looks: consoles, byte counts, progress, a model's text made safe for a terminal. Knows no commands."""

from __future__ import annotations

import sys
import unicodedata

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_WIDTH = 140
"""Columns when the output is not a terminal, where nobody wraps lines."""


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr as they are now: coloured on a terminal, plain and wide elsewhere."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)


def human_bytes(count: int) -> str:
    """`count` in the unit that leaves one to four digits before the point."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def printable(text: str) -> str:
    """Text without control characters, newline and tab excepted: a model's words must not drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class ProgressLine:
    """One line that says what is being done and how far it is; on a pipe, such as a pod's log, one line a tenth."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._last = ""
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )

    @property
    def is_terminal(self) -> bool:
        return self._console.is_terminal

    def report(self, what: str, share: float | None) -> None:
        """Show that `what` is under way; `share` is from 0 to 1, None if unknown. May be called from any thread."""
        if not self._console.is_terminal:
            line = what if share is None else f"{what}: {int(share * 10) * 10} %"
            if line != self._last:
                self._last = line
                self._console.print(line, markup=False)
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(what, total=1.0)
        self._progress.update(self._task, description=what, total=None if share is None else 1.0, completed=share or 0)

    def close(self) -> None:
        """Take the line away."""
        if self._task is not None:
            self._progress.stop()
