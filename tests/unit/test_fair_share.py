"""Tenants share a replica by the device time that they use, however many requests they send."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.replica.fair_share import FairShares
from cluster.replica.plan import ChoiceStart, Request, SchedulerConfig
from cluster.replica.scheduler import Scheduler

PREFILL_SECONDS = 0.001
"""Of a prompt token."""
STEP_SECONDS = 0.01


def request(key: str, tenant: bytes, now: float, prompt: int = 64, max_tokens: int = 4, priority: int = 0) -> Request:
    return Request(
        key=key,
        prompt=range(len(key), len(key) + prompt),
        choices=(ChoiceStart(0, ()),),
        max_tokens=max_tokens,
        min_tokens=0,
        stop_token_ids=frozenset(),
        deadline=math.inf,
        priority=priority,
        cache_domain=tenant,
        credit=None,
    )


class Replica:
    """A scheduler and a device that takes time, one step after the other."""

    def __init__(self, **settings: object) -> None:
        config = {
            "max_batch_tokens": 64,
            "max_sequences": 8,
            "block_size": 16,
            "num_blocks": 256,
            "context_length": 2048,
            "num_lanes": 1,
            "prefix_cache": False,
            **settings,
        }
        self.scheduler = Scheduler(SchedulerConfig(**config))  # type: ignore[arg-type]
        self.now = 0.0
        self.first_token: dict[object, float] = {}
        self._flights: deque = deque()

    def step(self) -> None:
        while plan := self.scheduler.plan(self.now):
            self._flights.append(plan)
        if not self._flights:
            self.now += STEP_SECONDS
            return
        plan = self._flights.popleft()
        self.now += STEP_SECONDS + PREFILL_SECONDS * plan.num_prefill_tokens
        sampled = [(row.slot, 7) for row in plan.rows if row.samples]
        for event in self.scheduler.complete(plan.step, sampled, self.now):
            self.first_token.setdefault(event.key, self.now)

    def run_until(self, *keys: object) -> None:
        while not all(key in self.first_token for key in keys):
            self.step()
            assert self.now < 1000


@pytest.mark.parametrize("order", ["slack", "arrival"])
def test_a_tenant_with_fifty_times_the_requests_does_not_hold_up_another(order: str) -> None:
    def waits(crowd: int) -> list[float]:
        replica = Replica(prefill_order=order)
        for number in range(crowd):
            replica.scheduler.submit(request(f"crowd-{number:04}", b"crowd", 0.0), replica.now)
        waits = []
        for number in range(20):
            for _ in range(12):
                replica.step()
            key, begin = f"guest-{number:02}", replica.now
            replica.scheduler.submit(request(key, b"guest", begin), begin)
            replica.run_until(key)
            waits.append(replica.first_token[key] - begin)
        return waits

    alone, crowded = waits(0), waits(1000)
    # A step that is under way, and one more that is planned ahead, are not taken back.
    longest_step = STEP_SECONDS + 64 * PREFILL_SECONDS
    assert max(crowded) <= 2 * max(alone) + 3 * longest_step


def test_two_tenants_that_always_wait_get_the_same_time() -> None:
    """One asks with prompts eight times as long, so it is served an eighth as often."""
    replica = Replica(max_sequences=1)
    for number in range(400):
        replica.scheduler.submit(request(f"long-{number:03}", b"long", 0.0, prompt=512, max_tokens=1), 0.0)
        replica.scheduler.submit(request(f"short-{number:03}", b"short", 0.0, prompt=64, max_tokens=1), 0.0)
    replica.run_until("long-019")
    served = [key for key in replica.first_token if str(key).startswith("short")]
    assert 100 <= len(served) <= 240


def test_a_class_goes_before_fairness() -> None:
    """Whoever has had much still has its interactive requests served before others' batches."""
    replica = Replica(max_sequences=1)
    for number in range(10):
        replica.scheduler.submit(request(f"a-{number}", b"busy", 0.0), 0.0)
    replica.run_until("a-5")
    replica.scheduler.submit(request("batch", b"idle", 0.0, priority=2), replica.now)
    replica.run_until("a-9", "batch")
    assert replica.first_token["batch"] > replica.first_token["a-9"]


def test_time_away_is_no_more_credit_than_a_quantum() -> None:
    shares = FairShares(1.0)
    shares.enter("a")
    shares.enter("b")
    shares.charge({"a": 10.0, "b": 10.0})
    shares.leave("b")
    shares.charge({"a": 50.0})
    shares.enter("b")
    assert (shares.arrears("a"), shares.arrears("b")) == (1, 0), "b goes first, once"
    shares.charge({"b": 1.0})
    assert (shares.arrears("a"), shares.arrears("b")) == (0, 0)
    shares.leave("b")
    shares.enter("b")
    assert (shares.arrears("a"), shares.arrears("b")) == (0, 0), "coming and going earns nothing"


def test_debt_is_not_shaken_off_by_leaving() -> None:
    shares = FairShares(1.0)
    shares.enter("a")
    shares.enter("b")
    shares.charge({"a": 10.0})
    shares.leave("a")
    shares.enter("a")
    assert shares.arrears("a") == 11, "b came later, with a quantum to spare"
    assert shares.arrears("b") == 0


operations = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["enter", "leave", "charge"])), max_size=60)


@given(operations)
def test_nobody_is_ever_in_credit_and_nothing_is_kept_for_nobody(steps: list[tuple[str, str]]) -> None:
    shares, present = FairShares(1.0), dict.fromkeys("abcd", 0)
    for account, step in steps:
        if step == "enter":
            shares.enter(account)
            present[account] += 1
        elif step == "leave" and present[account]:
            shares.leave(account)
            present[account] -= 1
        elif step == "charge":
            shares.charge({account: 1.5})
        here = [name for name, count in present.items() if count]
        assert all(shares.arrears(name) >= 0 for name in here)
        assert not here or min(shares.arrears(name) for name in here) == 0
    for account, count in present.items():
        for _ in range(count):
            shares.leave(account)
    assert not shares._used
    assert not shares._present
