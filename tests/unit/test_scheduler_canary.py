"""Many tenants, few slots, random cancels: no token of one request ever reaches another."""

from __future__ import annotations

import random

import pytest
from scheduler_world import VOCABULARY, World, config, request

from cluster.replica.plan import EndReason, Refused


def random_request(rng: random.Random, key, now: float):
    family = [[f * 7 % VOCABULARY + i % 5 for i in range(20)] for f in range(4)]
    prompt = rng.choice(family)[: rng.randrange(1, 21)] + [rng.randrange(VOCABULARY) for _ in range(rng.randrange(4))]
    n = rng.choice([1, 1, 1, 2, 3])
    max_tokens = rng.randrange(1, 16)
    emitted = [[rng.randrange(VOCABULARY) for _ in range(rng.randrange(max_tokens))] for _ in range(n)]
    return request(
        key,
        prompt,
        n=n,
        emitted=emitted if rng.random() < 0.2 else None,
        max_tokens=max_tokens,
        min_tokens=rng.randrange(4),
        stop_token_ids=frozenset(rng.sample(range(VOCABULARY), 3)),
        deadline=now + rng.uniform(1, 60) if rng.random() < 0.5 else float("inf"),
        priority=rng.randrange(3),
        cache_domain=rng.choice([b"a", b"b"]),
        credit=rng.choice([None, None, None, 0, 3]),
    )


@pytest.mark.parametrize(("num_lanes", "prefix_cache", "count"), [(1, True, 5000), (2, True, 4000), (3, False, 1000)])
def test_ten_thousand_requests_with_random_cancels_never_mix(num_lanes, prefix_cache, count):
    rng = random.Random(num_lanes)
    world = World(config(num_lanes=num_lanes, prefix_cache=prefix_cache, num_blocks=20, max_batch_tokens=24))
    live: list[int] = []
    submitted = 0
    while submitted < count or world.scheduler.has_work:
        action = rng.random()
        if action < 0.2 and submitted < count and len(live) < 40:
            try:
                world.submit(random_request(rng, submitted, world.now))
                live.append(submitted)
            except Refused:
                pass
            submitted += 1
        elif action < 0.23 and live:
            world.cancel(live.pop(rng.randrange(len(live))))
        elif action < 0.35 and live:
            world.scheduler.add_credit(rng.choice(live), rng.randrange(1, 4))
        elif action < 0.67:
            world.plan()
        elif world.in_flight and action < 0.97:
            world.complete()
        else:
            world.now += rng.uniform(0, 4)
            world.expire()
        live = [key for key in live if key in world.scheduler._requests]
    world.plan()
    world.check_idle()
    world.check_answers()
    ended = {key for key, _ in world.ends} | world.cancelled
    assert ended == set(world.requests)
    assert {*world.ends.values()} == {EndReason.STOP, EndReason.LENGTH, EndReason.DEADLINE}
