"""Who is refused early, who never is, and what a shortlist of a large fleet gives away."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import AdmissionConfig
from cluster.errors import Reason, ServiceError
from cluster.router.choose import Candidate, StepCosts, choose_replica, marginal_cost, stretch
from cluster.router.shedding import BATCH, INTERACTIVE, SHEDDABLE, admit, first_token_seconds, soonest_first_token
from cluster.router.shortlist import MOST_COMPARED, shortlist

COSTS = StepCosts(0.0095, 4.48e-5, 1.09e-9, 0.0102, 3.7e-5, 1.46e-8)
IDLE = Candidate(
    eligible=True,
    rtt=0.01,
    costs=COSTS,
    batch_tokens=2048,
    running=0,
    context_tokens=0,
    pending_prefill_tokens=0,
    prefill_share=0.0,
    free_tokens=600_000,
    used_tokens=0,
)
BUSY = dataclasses.replace(IDLE, pending_prefill_tokens=500_000)
CONFIG = AdmissionConfig(sheddable_seconds=5, batch_seconds=100)


def refusal(priority: int, soonest: float | None, time_left: float = 1000.0) -> ServiceError | None:
    try:
        admit(priority, soonest, time_left, CONFIG)
    except ServiceError as error:
        return error if error.reason is Reason.OVERLOADED else None
    return None


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_interactive_requests_are_never_refused(soonest: float, time_left: float) -> None:
    admit(INTERACTIVE, soonest, time_left, CONFIG)


@pytest.mark.parametrize(
    ("priority", "soonest", "time_left", "retry_after"),
    [
        (SHEDDABLE, 4.9, 1000, None),
        (SHEDDABLE, 5.1, 1000, 1.0),
        (SHEDDABLE, 20.0, 1000, 15.0),
        (SHEDDABLE, 500.0, 1000, 60.0),
        (BATCH, 20.0, 1000, None),
        (BATCH, 110.0, 1000, 10.0),
        (BATCH, 20.0, 10, 10.0),
        (SHEDDABLE, None, 1000, None),
    ],
)
def test_others_are_told_when_to_come_back(
    priority: int, soonest: float | None, time_left: float, retry_after: float | None
) -> None:
    error = refusal(priority, soonest, time_left)
    assert (None if error is None else error.retry_after) == pytest.approx(retry_after)


def test_one_replica_that_can_is_enough() -> None:
    busy = soonest_first_token(1000, 200, [BUSY, BUSY], [0, 0])
    assert busy is not None
    assert busy > 20
    one_idle = soonest_first_token(1000, 200, [BUSY, IDLE], [0, 0])
    assert one_idle is not None
    assert one_idle < 0.2
    assert soonest_first_token(1000, 200, [BUSY, dataclasses.replace(IDLE, eligible=False)], [0, 0]) == busy
    assert soonest_first_token(1000, 200, [], []) is None


def test_the_first_token_is_the_requests_own_part_of_the_cost() -> None:
    """Neighbours pay for a request, but do not make its first token later."""
    crowded = dataclasses.replace(IDLE, running=60, context_tokens=100_000)
    assert first_token_seconds(1000, 200, crowded, 0) == pytest.approx(first_token_seconds(1000, 200, IDLE, 0))
    assert first_token_seconds(1000, 200, crowded, 0) < marginal_cost(1000, 200, crowded, 0, 1.3)


def fleet(count: int, rng: random.Random) -> tuple[list[Candidate], list[int]]:
    """A world at work: three regions, every tenth replica holds the prompt, some are dead."""
    candidates = [
        dataclasses.replace(
            IDLE,
            eligible=rng.random() > 0.05,
            rtt=rng.choice((0.001, 0.084, 0.16)),
            running=rng.randrange(100),
            context_tokens=rng.randrange(400_000),
            pending_prefill_tokens=rng.randrange(60_000),
            prefill_share=rng.random(),
            free_tokens=rng.randrange(600_000),
            used_tokens=300_000,
        )
        for _ in range(count)
    ]
    return candidates, [rng.choice((0,) * 9 + (rng.randrange(8000),)) for _ in candidates]


def test_a_shortlist_gives_next_to_nothing_away() -> None:
    rng = random.Random(5)
    lost, whole = 0.0, 0.0
    for _ in range(60):
        candidates, cached = fleet(1000, rng)
        kept = shortlist(candidates, cached, rng)
        assert len(kept) <= 128
        best = choose_replica(8000, 200, candidates, cached, rng)
        index = choose_replica(8000, 200, [candidates[i] for i in kept], [cached[i] for i in kept], rng)
        assert best is not None
        assert index is not None
        shares = [candidate.prefill_share for candidate in candidates if candidate.eligible]
        price = 1.3 + stretch(sum(shares) / len(shares))
        costs = [marginal_cost(8000, 200, candidates[i], cached[i], price) for i in (best, kept[index])]
        whole += costs[0]
        lost += costs[1] - costs[0]
    assert lost <= 0.02 * whole


@given(st.integers(0, 600), st.integers(0, 2**32))
def test_a_shortlist_holds_the_living_only_and_all_of_a_small_fleet(count: int, seed: int) -> None:
    rng = random.Random(seed)
    candidates, cached = fleet(count, rng)
    kept = shortlist(candidates, cached, rng)
    living = [index for index, candidate in enumerate(candidates) if candidate.eligible]
    assert set(kept) <= set(living)
    assert len(set(kept)) == len(kept)
    assert bool(kept) == bool(living)
    if len(living) <= MOST_COMPARED:
        assert kept == living
