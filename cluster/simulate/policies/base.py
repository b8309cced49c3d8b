"""What a routing policy is asked, what it may look at, and what it may answer. Knows no policy and no fleet.

All policies see the same: the newest load report that has reached their router, corrected by that router's own
dispatches since; the same prefix index; the same round trips; the same (perhaps wrong) step coefficients.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.router.choose import StepCosts

HOLD = -1
"""Keep the request at the router; it is asked again when news of a replica arrives."""
REJECT = -2
"""Refuse the request; it counts as failed."""


@dataclass(slots=True)
class ReplicaView:
    """One replica as one router believes it to be, for one request."""

    index: int
    region: int
    round_trip: float
    """Seconds from the asking router and back."""
    running: int
    waiting: int
    pending_prefill_tokens: int
    """Prompt tokens still to be computed there, the router's own dispatches under way included."""
    context_tokens: int
    used_blocks: int
    total_blocks: int
    prefill_share: float
    cached_tokens: int
    """Of this request's prompt."""
    costs: StepCosts

    @property
    def load(self) -> int:
        """Requests there, in whatever state."""
        return self.running + self.waiting


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as a router knows it: nobody knows how long the answer will be."""

    num_prompt_tokens: int
    session: int
    region: int
    """Of the router that asks."""
    now: float
    expected_output_tokens: float
    """Mean of the answers that the fleet has finished."""
    ttft_target: float
    """Seconds in which the first token is wanted."""


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What a policy may know of the fleet from its configuration."""

    num_replicas: int
    block_size: int
    max_batch_tokens: int
    rng: random.Random = field(compare=False)


class Policy(Protocol):
    """Chooses. One instance serves all routers of a fleet, so state that a policy keeps is shared without delay: a
    gift to the policies that need it."""

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        """The index of a replica in `replicas` (never empty), or `HOLD`, or `REJECT`."""
        ...


Setting = dict[str, float]
"""A policy's parameters by name."""


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """A policy with its published parameters and others worth trying."""

    name: str
    make: Callable[[FleetFacts, Setting], Policy]
    default: Setting
    tunings: tuple[Setting, ...] = ()
    """Other settings; the best of these and the default is the policy's best tuning."""
    may_hold: bool = False
    """Whether the policy ever answers `HOLD`."""


def least(replicas: Sequence[ReplicaView], scores: Sequence[float], rng: random.Random) -> int:
    """The replica of the lowest score, ties at random."""
    best = min(scores)
    tied = [replica.index for replica, score in zip(replicas, scores, strict=True) if score == best]
    return tied[0] if len(tied) == 1 else rng.choice(tied)


def prefill_seconds(view: ReplicaView, ask: Ask, max_batch_tokens: int) -> float:
    """Own prefill of a request: chunks, tokens and attention over what comes before each token."""
    tokens = max(1, ask.num_prompt_tokens - view.cached_tokens)
    costs = view.costs
    return (
        -(-tokens // max_batch_tokens) * costs.prefill_base
        + costs.prefill_per_token * tokens
        + costs.prefill_per_token_context * tokens * (ask.num_prompt_tokens - tokens / 2)
    )


def queue_seconds(view: ReplicaView, max_batch_tokens: int) -> float:
    """Prefill that waits before a new request."""
    costs = view.costs
    return view.pending_prefill_tokens * (costs.prefill_per_token + costs.prefill_base / max_batch_tokens)
