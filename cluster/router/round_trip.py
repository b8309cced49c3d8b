"""How far a replica is, in seconds there and back, from what was measured. Knows no sockets and no clocks."""

from __future__ import annotations

SMOOTHING = 1 / 8
"""Share of each measurement in the estimate (RFC 6298, section 2)."""
PROBE_SECONDS = 1.0
"""Between two measurements."""


class RoundTrip:
    """A moving average that begins with what was expected, if anything was."""

    def __init__(self, expected: float | None = None) -> None:
        self._seconds = expected

    @property
    def seconds(self) -> float:
        """The estimate; 0 while there is none."""
        return self._seconds or 0.0

    def observe(self, seconds: float) -> None:
        """Take in a measurement."""
        if self._seconds is None:
            self._seconds = seconds
        self._seconds += SMOOTHING * (seconds - self._seconds)
