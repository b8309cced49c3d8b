"""The rule's laws: what delays never makes a replica more attractive, and the dead are never chosen."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.router.choose import Candidate, StepCosts, choose_replica, marginal_cost

COSTS = StepCosts(0.01, 1e-4, 1e-9, 0.01, 1e-4, 1e-7)
IDLE = Candidate(
    eligible=True,
    rtt=0.01,
    costs=COSTS,
    batch_tokens=512,
    running=0,
    context_tokens=0,
    pending_prefill_tokens=0,
    prefill_share=0.0,
    free_tokens=100_000,
    used_tokens=0,
)

seconds = st.floats(0, 1, allow_subnormal=False)
costs = st.builds(StepCosts, seconds, seconds, st.floats(0, 1e-3), seconds, seconds, st.floats(0, 1e-3))
candidates = st.builds(
    Candidate,
    eligible=st.booleans(),
    rtt=seconds,
    costs=costs,
    batch_tokens=st.integers(1, 8192),
    running=st.integers(0, 500),
    context_tokens=st.integers(0, 10**6),
    pending_prefill_tokens=st.integers(0, 10**6),
    prefill_share=st.floats(0, 1),
    free_tokens=st.integers(0, 10**6),
    used_tokens=st.integers(0, 10**6),
)
prompts = st.integers(1, 100_000)
answers = st.floats(1, 10_000)
prices = st.floats(1.3, 10.3)


@given(candidates, prompts, answers, prices, st.integers(0, 100_000), seconds)
def test_cost_grows_with_the_round_trip(
    candidate: Candidate, prompt: int, answer: float, price: float, cached: int, more: float
) -> None:
    farther = dataclasses.replace(candidate, rtt=candidate.rtt + more)
    assert marginal_cost(prompt, answer, farther, cached, price) >= marginal_cost(
        prompt, answer, candidate, cached, price
    )


@given(
    candidates,
    prompts,
    answers,
    prices,
    st.sampled_from(["pending_prefill_tokens", "running", "context_tokens"]),
    st.integers(0, 10_000),
)
def test_cost_grows_with_the_queue(
    candidate: Candidate, prompt: int, answer: float, price: float, name: str, more: int
) -> None:
    busier = dataclasses.replace(candidate, **{name: getattr(candidate, name) + more})
    before = marginal_cost(prompt, answer, candidate, 0, price)
    assert marginal_cost(prompt, answer, busier, 0, price) >= before * (1 - 1e-12)


@given(candidates, prompts, answers, prices, seconds)
def test_cost_grows_with_the_time_spent_on_prefills(
    candidate: Candidate, prompt: int, answer: float, price: float, share: float
) -> None:
    low, high = sorted((candidate.prefill_share, share))
    calmer, busier = (dataclasses.replace(candidate, prefill_share=value) for value in (low, high))
    before = marginal_cost(prompt, answer, calmer, 0, price)
    assert marginal_cost(prompt, answer, busier, 0, price) >= before * (1 - 1e-12)


@given(candidates, prompts, answers, prices, st.data())
def test_cost_shrinks_with_the_cached_prefix(
    candidate: Candidate, prompt: int, answer: float, price: float, data: st.DataObject
) -> None:
    less = data.draw(st.integers(0, prompt))
    more = data.draw(st.integers(less, prompt))
    warmer = marginal_cost(prompt, answer, candidate, more, price)
    assert warmer <= marginal_cost(prompt, answer, candidate, less, price) * (1 + 1e-12)


@given(st.lists(candidates, max_size=8), prompts, answers, st.integers(0, 2**32))
def test_only_the_eligible_are_chosen(fleet: list[Candidate], prompt: int, answer: float, seed: int) -> None:
    index = choose_replica(prompt, answer, fleet, [0] * len(fleet), random.Random(seed))
    if index is None:
        assert not any(candidate.eligible for candidate in fleet)
    else:
        assert fleet[index].eligible


def test_nonsense_coefficients_make_no_replica_unreachable_nor_the_call_fail() -> None:
    broken = dataclasses.replace(IDLE, rtt=float("nan"))
    assert choose_replica(10, 10, [broken], [0], random.Random(1)) == 0
    assert choose_replica(10, 10, [broken, IDLE], [0, 0], random.Random(1)) == 1


def test_equal_replicas_share_the_work() -> None:
    rng = random.Random(7)
    picks = Counter(choose_replica(100, 100, [IDLE] * 4, [0] * 4, rng) for _ in range(4000))
    assert set(picks) == {0, 1, 2, 3}
    assert min(picks.values()) > 850


@pytest.mark.parametrize(
    ("better", "worse", "cached"),
    [
        pytest.param(IDLE, dataclasses.replace(IDLE, rtt=0.2), (0, 0), id="nearer"),
        pytest.param(IDLE, dataclasses.replace(IDLE, pending_prefill_tokens=5000), (0, 0), id="shorter-queue"),
        pytest.param(IDLE, dataclasses.replace(IDLE, running=40, context_tokens=40_000), (0, 0), id="less-busy"),
        pytest.param(IDLE, dataclasses.replace(IDLE, free_tokens=0, used_tokens=9999), (0, 0), id="room"),
        pytest.param(IDLE, IDLE, (4000, 0), id="warmer"),
        pytest.param(dataclasses.replace(IDLE, rtt=0.1), IDLE, (4000, 0), id="far-but-warm"),
        pytest.param(IDLE, dataclasses.replace(IDLE, rtt=1.0), (0, 4000), id="warm-but-too-far"),
    ],
)
def test_the_cheaper_replica_wins(better: Candidate, worse: Candidate, cached: tuple[int, int]) -> None:
    assert choose_replica(4096, 100, [better, worse], cached, random.Random(1)) == 0
    assert choose_replica(4096, 100, [worse, better], cached[::-1], random.Random(1)) == 1
