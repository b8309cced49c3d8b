"""What completed steps teach about time: seconds a prompt token takes, and the share of time that prefill takes."""

from __future__ import annotations

import math


class PrefillRate:
    """Seconds a prompt token takes, learnt from steps that were mostly prefill."""

    _WEIGHT = 0.2

    def __init__(self, seconds_per_token: float) -> None:
        self.seconds_per_token = seconds_per_token
        """0 until something is known."""

    def learn(self, seconds: float, num_prefill_tokens: int, num_decode_tokens: int) -> None:
        """Take in one completed step."""
        if seconds <= 0 or not num_prefill_tokens or num_prefill_tokens < num_decode_tokens:
            return
        measured = seconds / (num_prefill_tokens + num_decode_tokens)
        known = self.seconds_per_token
        self.seconds_per_token = known + self._WEIGHT * (measured - known) if known else measured


class PrefillShare:
    """Share of the last seconds spent in steps with prefill: a mean that forgets with a time constant."""

    _TIME_CONSTANT = 5.0

    def __init__(self) -> None:
        self.value = 0.0
        self._until = -math.inf

    def add(self, now: float, prefill_seconds: float) -> None:
        """Account for the time up to `now`, of which `prefill_seconds` went to steps with prefill."""
        passed = now - self._until
        if passed > 0:
            share = min(1.0, prefill_seconds / passed)
            self.value += (1 - math.exp(-passed / self._TIME_CONSTANT)) * (share - self.value)
            self._until = now
