"""Predicts how long a step takes from the steps before it. Knows token counts and seconds, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN_SECONDS = 5.0
"""Predicted for the first steps of a kind: caches are cold, and a death noticed late is better than one invented."""

_WEIGHT = 0.2
"""Of the newest step in the running mean."""


@dataclass(slots=True)
class StepTimes:
    """Running means: seconds of a decode-only step, seconds per prefill token of the others."""

    decode_seconds: float | None = None
    prefill_seconds_per_token: float | None = None

    def learn(self, num_prefill_tokens: int, seconds: float) -> None:
        """A step took `seconds`."""
        if num_prefill_tokens:
            self.prefill_seconds_per_token = _mean(self.prefill_seconds_per_token, seconds / num_prefill_tokens)
        else:
            self.decode_seconds = _mean(self.decode_seconds, seconds)

    def predict(self, num_prefill_tokens: int) -> float:
        """Seconds of a step; never below a decode step's."""
        if self.decode_seconds is None:
            return UNKNOWN_SECONDS
        if not num_prefill_tokens:
            return self.decode_seconds
        if self.prefill_seconds_per_token is None:
            return UNKNOWN_SECONDS
        return max(self.decode_seconds, num_prefill_tokens * self.prefill_seconds_per_token)


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
