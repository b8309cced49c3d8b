"""Which replica should take a request: the one where it costs everybody the least time.

Pure: plain numbers in, an index out; the router and the simulator call this same function. The cost of a request at a
replica, in seconds, is how long it waits for its first token there plus how long it makes the others wait:

    u    = prompt - cached                                         tokens to compute
    P    = ceil(u/B) a0 + pre u + quad u (prompt - u/2)            its own prefill
    S    = t0 + dec n + ctx C                                      a decode step now
    W    = pend pre + (pend/B) S + room                            what is queued before it
    d    = dec + ctx (prompt + o/2)                                what its decoding adds to each step
    D    = o S / (1 - r)                                           its own decoding, others' prefills between its steps
    cost = rtt + W + (1 + kappa) P + w (n (P + o d) + D)

with n running sequences of C context tokens, pend queued prompt tokens, B the step's token budget, o the expected
answer, r the share of its time that the replica spends in steps with prefill. kappa = 0.3 + rho/(1 - rho) prices fleet
time spent so (rho, the mean of r) as a queue does; `room` is how long running sequences take to free the KV blocks that
are missing. D draws requests away from slow replicas, and from where prompts are computed, which leaves fewer
neighbours there to be made to wait by the next prompt. Cache-first, least-load and nearest are limits of this rule.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

PREFILL_PRICE = 0.3
"""kappa of an idle fleet: computing a prefix again is a cost even where nobody waits."""
DECODE_WEIGHT = 0.035
"""w: how much a second of decoding, its own or one that neighbours are kept from theirs, counts against a second before
the first token. Found by simulation: docs/scheduling.md."""
MAX_PREFILL_SHARE = 0.9
"""Cap of rho and r: kappa stays below 9.3."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """How long a replica's steps take, in seconds: six coefficients fitted from its step log."""

    prefill_base: float
    prefill_per_token: float
    prefill_per_token_context: float
    decode_base: float
    decode_per_sequence: float
    decode_per_context_token: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One replica as a router sees it now, its own dispatches since the last report included."""

    eligible: bool
    """Alive, of the right model, and allowed for this request."""
    rtt: float
    """Seconds there and back."""
    costs: StepCosts
    batch_tokens: int
    """B: most tokens of one step."""
    running: int
    context_tokens: int
    pending_prefill_tokens: int
    prefill_share: float
    free_tokens: int
    """Tokens that fit the free KV blocks."""
    used_tokens: int
    """Tokens that fit the KV blocks in use."""
    step: float = field(init=False)
    """S: what does not depend on the request is computed once a report, not once a request."""
    queued: float = field(init=False)
    """rtt + W, without room."""
    stretched_step: float = field(init=False)
    """S / (1 - r)."""

    def __post_init__(self) -> None:
        costs, pending = self.costs, self.pending_prefill_tokens
        step = (
            costs.decode_base
            + self.running * costs.decode_per_sequence
            + self.context_tokens * costs.decode_per_context_token
        )
        queued = self.rtt + pending * costs.prefill_per_token + pending / self.batch_tokens * step
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "queued", queued)
        object.__setattr__(self, "stretched_step", step * (1.0 + stretch(self.prefill_share)))


def choose_replica(
    prompt_tokens: int,
    expected_tokens: float,
    candidates: Sequence[Candidate],
    cached_tokens: Sequence[int],
    rng: random.Random,
) -> int | None:
    """The index of the cheapest eligible candidate, equal ones at random; None if none is eligible.

    Args:
        prompt_tokens: length of the prompt, tokens emitted elsewhere included.
        expected_tokens: tokens that the answer is expected to have.
        candidates: the replicas.
        cached_tokens: for each candidate, leading prompt tokens whose blocks it holds or has been promised.
        rng: breaks ties.
    """
    eligible = [candidate for candidate in candidates if candidate.eligible]
    if not eligible:
        return None
    price = 1.0 + PREFILL_PRICE + stretch(sum([candidate.prefill_share for candidate in eligible]) / len(eligible))
    best: list[int] = []
    best_cost = float("inf")
    for index, candidate in enumerate(candidates):
        if candidate.eligible:
            cost = marginal_cost(prompt_tokens, expected_tokens, candidate, cached_tokens[index], price)
            if cost < best_cost:
                best, best_cost = [index], cost
            elif cost == best_cost:
                best.append(index)
    # Costs that are not numbers (a broken report) compare false: then any eligible replica is as good as another.
    return rng.choice(best or [index for index, candidate in enumerate(candidates) if candidate.eligible])


def marginal_cost(
    prompt_tokens: int,
    expected_tokens: float,
    candidate: Candidate,
    cached_tokens: int,
    prefill_price: float,
    decode_weight: float = DECODE_WEIGHT,
) -> float:
    """Seconds that the request costs itself and others at one candidate.

    Args:
        prefill_price: 1 + kappa; 1 for the request's own prefill alone.
        decode_weight: w; 0 leaves what decoding costs out.
    """
    costs = candidate.costs
    # The last prompt token is always computed: its logits give the first answer token.
    new = prompt_tokens - cached_tokens if prompt_tokens > cached_tokens else 1
    prefill = (
        -(-new // candidate.batch_tokens) * costs.prefill_base
        + new * costs.prefill_per_token
        + new * (prompt_tokens - 0.5 * new) * costs.prefill_per_token_context
    )
    wait = candidate.queued
    missing = new + candidate.pending_prefill_tokens - candidate.free_tokens
    if missing > 0 and candidate.used_tokens > 0:
        # Running sequences give back all they hold within about one answer's length of steps.
        wait += min(missing / candidate.used_tokens, 1.0) * expected_tokens * candidate.step
    added = costs.decode_per_sequence + (prompt_tokens + 0.5 * expected_tokens) * costs.decode_per_context_token
    decoding = candidate.running * (prefill + expected_tokens * added) + expected_tokens * candidate.stretched_step
    return wait + prefill_price * prefill + decode_weight * decoding


def stretch(prefill_share: float) -> float:
    """By how much of itself other work grows on a device that spends this share of its time in steps with prefill."""
    share = min(prefill_share, MAX_PREFILL_SHARE)
    return share / (1.0 - share)
