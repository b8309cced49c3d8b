"""What a rank is doing right now, and how it says that a peer failed it. Knows no torch and no transport."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


class CollectiveTimeout(CollectiveError):  # noqa: N818  what happened, in one word
    """A peer did not arrive in time; the message names the rank, the operation and its sequence number."""


@contextmanager
def peer_failures_named(operation: str, peer: str) -> Iterator[None]:
    """Turn a transport's RuntimeError into a `CollectiveError` that says what was going on with whom."""
    try:
        yield
    except CollectiveError:
        raise
    except RuntimeError as error:
        text = str(error)
        late = "timed out" in text.lower() or "timeout" in text.lower()
        kind = CollectiveTimeout if late else CollectiveError
        raise kind(f"{operation} with {peer} failed: {text.splitlines()[0]}") from error
