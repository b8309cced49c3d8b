"""Choices whose every token needs a permit: nothing is sampled without one, and no answer changes."""

from __future__ import annotations

import random

import pytest

from cluster.replica.plan import StepPlan
from tests.unit.scheduler_world import World, config, request


class PermitWorld(World):
    """Requests named by odd numbers need permits, which the test gives when it likes."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.permitted: set[tuple[object, int]] = set()
        self.owed: list[tuple[object, int]] = []

    def submit(self, request) -> None:
        super().submit(request)
        self.permitted.update((request.key, start.index) for start in request.choices)

    def plan(self) -> StepPlan | None:
        plan = super().plan()
        for row in plan.rows if plan else ():
            if row.samples and row.key % 2:
                self.permitted.remove((row.key, row.choice))  # a KeyError: sampled without a permit
        return plan

    def complete(self) -> list:
        events = super().complete()
        self.owed.extend((event.key, event.choice) for event in events if event.key % 2 and event.end is None)
        return events

    def permit(self, rng: random.Random) -> None:
        key = self.owed.pop(rng.randrange(len(self.owed)))
        self.permitted.add(key)
        self.scheduler.permit(*key)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_sampled_without_a_permit_and_nothing_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    world = PermitWorld(config(num_blocks=18, num_lanes=1 + seed % 3, max_sequences=3 + seed % 4))
    waiting = list(range(24))
    while waiting or world.in_flight or world.owed or world.scheduler.has_work:
        world.now += 0.01
        if waiting and rng.random() < 0.4:
            key = waiting.pop(0)
            prompt = [rng.randrange(50) for _ in range(rng.randint(1, 20))]
            fields = {"needs_permits": bool(key % 2), "n": rng.choice((1, 1, 3)), "max_tokens": rng.randint(1, 8)}
            world.submit(
                request(key, prompt, stop_token_ids=frozenset({1, 2, 3}), priority=rng.randint(0, 1), **fields)
            )
        if world.owed and rng.random() < 0.5:
            world.permit(rng)
        while world.plan() is not None and rng.random() < 0.7:
            pass
        if world.in_flight and rng.random() < 0.7:
            world.complete()
    assert len(world.ends) == len(world.tokens)
    world.check_answers()


def test_others_are_planned_ahead_while_one_waits_for_its_permit() -> None:
    world = PermitWorld(config())
    world.submit(request(1, [5, 6, 7], max_tokens=4, needs_permits=True))
    world.submit(request(2, [8, 9], max_tokens=4))
    rows = [[row.key for row in plan.rows] for plan in (world.plan(), world.plan()) if plan]
    assert rows == [[1, 2], [2]]
    world.complete()
    assert [row.key for row in world.plan().rows] == [2]
    world.permit(random.Random(0))
    world.complete()
    assert {row.key for row in world.plan().rows} == {1, 2}


def test_those_who_need_permits_share_steps_instead_of_taking_turns() -> None:
    world = PermitWorld(config())
    world.submit(request(1, [5, 6, 7], max_tokens=6, needs_permits=True))
    assert world.plan() is not None
    world.submit(request(3, [8, 9], max_tokens=6, needs_permits=True))
    assert world.plan() is None, "it would be a step of its own for ever"
    world.complete()
    world.permit(random.Random(0))
    assert {row.key for row in world.plan().rows} == {1, 3}


def test_permits_of_what_does_not_live_are_ignored() -> None:
    world = PermitWorld(config())
    world.submit(request(1, [5], needs_permits=True))
    world.scheduler.permit("nobody", 0)
    world.scheduler.permit(1, 7)
    world.cancel(1)
    world.scheduler.permit(1, 0)
    assert world.plan() is None
