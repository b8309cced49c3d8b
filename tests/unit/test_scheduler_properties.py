"""Whatever happens in whatever order: budgets hold, nothing is owned twice, all is given back, answers are as alone."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_world import World, config, request

from cluster.replica.plan import EndReason, Refused

prompts = st.lists(st.integers(0, 2), min_size=1, max_size=20)
"""Few tokens, so that prefixes are often equal."""
configs = st.builds(
    config,
    max_batch_tokens=st.integers(1, 24),
    max_sequences=st.integers(1, 5),
    block_size=st.sampled_from([1, 2, 4, 8]),
    num_blocks=st.integers(8, 40),
    num_lanes=st.integers(1, 3),
    prefix_cache=st.booleans(),
    look_ahead_seconds=st.sampled_from([0.0, 0.2, float("inf")]),
    prefill_seconds_per_token=st.sampled_from([0.0, 0.05]),
    patience_seconds=st.sampled_from([1.0, 60.0]),
)


class Machine(RuleBasedStateMachine):
    """Routers, workers and clock take turns at random; `World` checks after each turn."""

    @initialize(config=configs)
    def start(self, config):
        self.world = World(config)
        self.next_key = 0

    @property
    def keys(self) -> list:
        return list(self.world.scheduler._requests)

    @rule(
        prompt=prompts,
        n=st.integers(1, 3),
        max_tokens=st.integers(1, 10),
        emitted=st.lists(st.integers(0, 2), max_size=4),
        stop=st.frozensets(st.integers(0, 49), max_size=8),
        min_tokens=st.integers(0, 4),
        priority=st.integers(0, 2),
        time_left=st.sampled_from([0.5, 3.0, float("inf")]),
        first_token=st.sampled_from([0.3, float("inf")]),
        credit=st.sampled_from([None, 0, 2]),
        domain=st.sampled_from([b"a", b"b"]),
    )
    def submit(
        self, prompt, n, max_tokens, emitted, stop, min_tokens, priority, time_left, first_token, credit, domain
    ):
        now = self.world.now
        with contextlib.suppress(Refused):
            self.world.submit(
                request(
                    self.next_key,
                    prompt,
                    n=n,
                    emitted=[emitted[:length] for length in range(n)],
                    max_tokens=max_tokens,
                    min_tokens=min_tokens,
                    stop_token_ids=stop,
                    priority=priority,
                    deadline=now + time_left,
                    first_token_by=now + first_token,
                    credit=credit,
                    cache_domain=domain,
                )
            )
        self.next_key += 1

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def cancel(self, data):
        self.world.cancel(data.draw(st.sampled_from(self.keys)))

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), tokens=st.integers(1, 5))
    def add_credit(self, data, tokens):
        self.world.scheduler.add_credit(data.draw(st.sampled_from(self.keys)), tokens)

    @rule()
    def plan(self):
        self.world.plan()

    @precondition(lambda self: self.world.in_flight)
    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0]))
    def complete(self, seconds):
        self.world.now += seconds
        self.world.complete()

    @rule(seconds=st.sampled_from([0.0, 0.5]))
    def expire(self, seconds):
        self.world.now += seconds
        self.world.expire()

    @invariant()
    def load_is_consistent(self):
        if not hasattr(self, "world"):
            return
        load = self.world.scheduler.load()
        assert 0 <= load.used_blocks <= load.total_blocks
        assert load.pending_prefill_tokens >= load.waiting >= 0
        assert load.running <= self.world.config.max_sequences

    def teardown(self):
        """Everyone gets credit and time: all that is left must end by itself."""
        if not hasattr(self, "world"):
            return
        world = self.world
        while world.scheduler.has_work:
            for key in self.keys:
                world.scheduler.add_credit(key, 100)
            world.expire()
            world.run(seconds_per_step=0.01)
            assert world.scheduler.next_deadline < float("inf") or not self.keys, "what has time and credit runs"
            world.now = max(world.now, world.scheduler.next_deadline if self.keys else 0.0)
        world.check_idle()
        world.check_answers()
        choices = {name for name in world.tokens if name[0] not in world.cancelled}
        assert choices == {name for name in world.ends if name[0] not in world.cancelled}


TestRandomLife = Machine.TestCase
TestRandomLife.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


@settings(max_examples=150, deadline=None)
@given(
    config=configs,
    requests=st.lists(
        st.tuples(prompts, st.integers(1, 3), st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=12
    ),
)
def test_batched_answers_equal_those_alone(config, requests):
    world = World(config)
    for key, (prompt, n, max_tokens, priority) in enumerate(requests):
        try:
            world.submit(request(key, prompt, n=n, max_tokens=max_tokens, priority=priority))
        except Refused:
            continue
    world.run(seconds_per_step=0.1)
    assert set(world.ends) == set(world.tokens)
    assert set(world.ends.values()) <= {EndReason.LENGTH}
    world.check_answers()
    world.check_idle()


@pytest.mark.parametrize("seed", range(3))
def test_every_order_of_completion_gives_the_same_answers(seed):
    """How far planning runs ahead of completing is the engine's choice and changes no token."""
    rng = random.Random(seed)
    world = World(config(num_lanes=2, num_blocks=24, max_sequences=6))
    for key in range(30):
        world.submit(request(key, [key % 3] * rng.randrange(1, 18), max_tokens=10))
    while world.scheduler.has_work:
        if rng.random() < 0.5 or not world.in_flight:
            world.plan()
        else:
            world.complete()
    world.check_answers()
    world.check_idle()
