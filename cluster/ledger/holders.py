"""Which routers may have open rows, and which of them are dead. Knows processes and beats; reads no clock of others.

A router raises a number in its row of `holders` every third of the lease. Whoever sees the number stand still for a
whole lease, on its own monotonic clock, takes the router for dead. No two clocks are ever compared, so clocks that
jump change nothing. A dead process of the same machine is known at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cluster.ledger.database import Database


def process_name() -> str:
    """This process, unmistakably: boot, pid namespace, pid and start time."""
    return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}"


def _machine() -> str:
    """Processes with equal values see each other's pids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str | None:
    """When a process began, by a clock that nobody sets (ticks since boot); None if it is gone or only waits for its
    parent to notice."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def is_known_dead(process: str) -> bool:
    """True if the process was of this machine and is gone; False says nothing."""
    machine, pid, started = process.rsplit("/", 2)
    return machine == _machine() and _started(int(pid)) != started


def beat(database: Database, holder: str, process: str) -> list[tuple[str, str, int]]:
    """Say that `holder` lives. Returns (holder, process, beats) of all."""
    database.execute(
        """INSERT INTO holders (holder, process, beats) VALUES (?, ?, 1)
        ON CONFLICT (holder) DO UPDATE SET beats = holders.beats + 1""",
        (holder, process),
    )
    return [(row[0], row[1], row[2]) for row in database.query("SELECT holder, process, beats FROM holders")]


@dataclass
class Watch:
    """Decides who is dead from what is read now and then."""

    lease_seconds: float
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Beats, and when they were first seen."""

    def dead(self, holders: list[tuple[str, str, int]], now: float) -> list[str]:
        """Those whose process is gone or whose beats stood still; `now` in monotonic seconds."""
        seen, self._seen = self._seen, {}
        gone = []
        for holder, process, beats in holders:
            before, since = seen.get(holder, (beats, now))
            self._seen[holder] = (beats, since if before == beats else now)
            if is_known_dead(process) or (before == beats and now - since >= self.lease_seconds):
                gone.append(holder)
        return gone
