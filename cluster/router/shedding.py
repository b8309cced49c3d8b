"""Whether a request that may be refused should be: can any replica give it its first token in time? Pure.

Interactive requests are never refused for load. Others are refused at the door, before they wait and cost anything,
and told when to come back.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.config import AdmissionConfig
from cluster.errors import QuotaViolation, Reason, ServiceError
from cluster.router.choose import Candidate, marginal_cost

RETRY_SECONDS = (1.0, 60.0)
"""Shortest and longest time that a client is told to wait."""
INTERACTIVE, SHEDDABLE, BATCH = range(3)
"""`GenerationSpec.priority`."""


def soonest_first_token(
    prompt_tokens: int, expected_tokens: float, candidates: Sequence[Candidate], cached_tokens: Sequence[int]
) -> float | None:
    """Seconds until the first token at the replica that would give it first; None if none is eligible."""
    return min(
        (
            first_token_seconds(prompt_tokens, expected_tokens, candidate, cached)
            for candidate, cached in zip(candidates, cached_tokens, strict=True)
            if candidate.eligible
        ),
        default=None,
    )


def first_token_seconds(prompt_tokens: int, expected_tokens: float, candidate: Candidate, cached_tokens: int) -> float:
    """Round trip, queue and own prefill at one candidate: its cost to the request alone."""
    return marginal_cost(prompt_tokens, expected_tokens, candidate, cached_tokens, 1.0, decode_weight=0.0)


def admit(priority: int, soonest: float | None, time_left: float, config: AdmissionConfig) -> None:
    """Let a request in, or raise.

    Args:
        soonest: `soonest_first_token`; None lets it in, to wait for a replica like any other.
        time_left: seconds until its deadline.

    Raises:
        ServiceError: OVERLOADED, with the seconds after which its target can probably be met.
    """
    if priority == INTERACTIVE or soonest is None:
        return
    target = config.sheddable_seconds if priority == SHEDDABLE else config.batch_seconds
    target = min(target, time_left)
    if soonest <= target:
        return
    shortest, longest = RETRY_SECONDS
    quota = QuotaViolation("fleet", f"first token in {soonest:.1f} s at the earliest, wanted within {target:.1f} s")
    raise ServiceError(Reason.OVERLOADED, quotas=(quota,), retry_after=min(max(soonest - target, shortest), longest))
