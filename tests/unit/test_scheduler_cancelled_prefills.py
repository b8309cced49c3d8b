"""Prompts that are given up half-way cost those behind them one chunk at most."""

from __future__ import annotations

import pytest
from scheduler_world import World, config, request

CHUNK = 16


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_ten_long_prompts_cancelled_at_half_delay_the_next_by_a_chunk_at_most(num_lanes):
    """A chunk a lane may be in flight; what is planned after the cancel is the newcomer's."""
    world = World(
        config(
            max_batch_tokens=CHUNK,
            max_sequences=16,
            num_blocks=1000,
            context_length=300,
            num_lanes=num_lanes,
            look_ahead_seconds=0.2,
            prefill_seconds_per_token=0.05,
        )
    )
    for key in range(10):
        world.submit(request(key, range(key, key + 160), max_tokens=100))
    half = 10 * 160 // 2
    while sum(plan.num_prefill_tokens for plan in world.plans) < half:
        if world.plan() is None:
            world.now += CHUNK * 0.05
            world.complete()
    assert not world.ends, "all of them still want something"
    in_flight = sum(plan.num_prefill_tokens for plan in world.in_flight)
    assert in_flight <= CHUNK * num_lanes
    for key in range(10):
        world.cancel(key)
    planned_before = len(world.plans)
    world.submit(request("next", range(100, 120)))
    world.run(seconds_per_step=0.01)
    after = world.plans[planned_before:]
    assert all(row.key == "next" for plan in after for row in plan.rows)
    assert sum(row.num_tokens for row in after[0].rows) == CHUNK
    world.check_answers()
    world.check_idle()
