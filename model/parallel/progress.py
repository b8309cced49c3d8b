"""What a rank is doing right now, and how it says that a peer failed it. Knows no torch and no transport."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ProgressCounter:
    """Moved by the one thread that computes, read by a heartbeat thread: alive is what moves (an open port is not)."""

    value: int = 0
    """Finished layers, collectives and transfers, ever rising."""
    where: str = "idle"
    """What is going on, for the log line that names a silent rank."""

    def bump(self, where: str) -> None:
        """Something finished and `where` begins."""
        self.value += 1
        self.where = where


class CollectiveError(RuntimeError):
    """A collective or transfer cannot finish: a peer left, failed or disagrees. The replica must be rebuilt."""


class CollectiveTimeout(CollectiveError):
    """A peer did not arrive in time; the message names the rank, the operation and its sequence number."""
