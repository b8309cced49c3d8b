"""What counts as served well, and what a run amounts to. Knows requests' times, no replicas.

A request is good if its first token came within the target for its prompt's length and its tokens after that came, on
average, within the target gap. Refused, shed, lost, timed out and unfinished requests are failures like late ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Targets:
    """Service level: what a user of a chat product would still call good."""

    ttft_seconds: float = 2.0
    """To the first token of a short prompt, measured at the router, round trip included."""
    ttft_seconds_per_token: float = 1e-4
    """Added for each prompt token: the device alone needs half of that."""
    tpot_seconds: float = 0.1
    """Mean gap between tokens after the first."""

    def ttft(self, num_prompt_tokens: int) -> float:
        """Seconds in which a prompt's first token is wanted."""
        return self.ttft_seconds + self.ttft_seconds_per_token * num_prompt_tokens


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in seconds since the run began."""

    num_prompt_tokens: int
    arrival: float
    home: int
    """Region whose router it came to."""
    served_by: int = -1
    """Replica, the last one if it moved; -1 if none took it."""
    cached_tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None
    """Set when the answer is complete."""
    num_tokens: int = 0
    moves: int = 0
    """How often it had to go on elsewhere."""

    @property
    def ttft(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tpot(self) -> float | None:
        if self.first_token is None or self.last_token is None:
            return None
        return (self.last_token - self.first_token) / max(1, self.num_tokens - 1)

    def is_good(self, targets: Targets) -> bool:
        """True if complete and within both targets."""
        ttft, tpot = self.ttft, self.tpot
        if ttft is None or tpot is None:
            return False
        return ttft <= targets.ttft(self.num_prompt_tokens) and tpot <= targets.tpot_seconds


@dataclass(frozen=True, slots=True)
class Summary:
    """One run."""

    num_requests: int
    goodput: float
    """Share of good requests."""
    unserved: float
    """Share of requests that never got a whole answer."""
    ttft_p50: float
    ttft_p99: float
    """Over requests that got a first token."""
    tpot_p50: float
    tpot_p99: float
    hit_share: float
    """Of all prompt tokens, found in a prefix cache."""
    remote_share: float
    """Of all requests, served outside their home region."""
    busy_share: float
    """Of all replica-seconds until the last arrival, spent computing."""


def summarise(outcomes: Sequence[Outcome], targets: Targets, region_of: Sequence[int], busy_share: float) -> Summary:
    """Boil a run down.

    Args:
        region_of: region by replica.
        busy_share: as in `Summary`.
    """
    ttfts = sorted(outcome.ttft for outcome in outcomes if outcome.ttft is not None)
    tpots = sorted(outcome.tpot for outcome in outcomes if outcome.tpot is not None)
    served = [outcome for outcome in outcomes if outcome.served_by >= 0]
    total = len(outcomes)
    return Summary(
        num_requests=total,
        goodput=sum(outcome.is_good(targets) for outcome in outcomes) / total,
        unserved=sum(outcome.last_token is None for outcome in outcomes) / total,
        ttft_p50=_quantile(ttfts, 0.5),
        ttft_p99=_quantile(ttfts, 0.99),
        tpot_p50=_quantile(tpots, 0.5),
        tpot_p99=_quantile(tpots, 0.99),
        hit_share=sum(outcome.cached_tokens for outcome in served)
        / sum(outcome.num_prompt_tokens for outcome in outcomes),
        remote_share=sum(region_of[outcome.served_by] != outcome.home for outcome in served) / total,
        busy_share=busy_share,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all are not above; infinite if there are none."""
    if not ordered:
        return float("inf")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
