"""Who goes first, who gives way, who pauses, and who must never wait for ever."""

from __future__ import annotations

import random

import pytest
from scheduler_world import World, alone, config, request

from cluster.replica.plan import ChoiceStart, EndReason


def entered(world: World) -> list:
    """Keys in the order in which they first got a slot."""
    return list(dict.fromkeys(opened.key for plan in world.plans for opened in plan.opened))


def one_at_a_time(**changes):
    return config(max_sequences=1, max_batch_tokens=8, **changes)


@pytest.mark.parametrize("prefill_order", ["slack", "arrival"])
def test_without_deadlines_order_is_arrival_even_for_longer_prompts(prefill_order):
    world = World(one_at_a_time(prefill_order=prefill_order, prefill_seconds_per_token=1.0))
    for key, length in [("a", 3), ("b", 30), ("c", 1)]:
        world.submit(request(key, range(length)))
    world.run()
    assert entered(world) == ["a", "b", "c"]


@pytest.mark.parametrize(("prefill_order", "expected"), [("slack", "cbad"), ("arrival", "abcd")])
def test_less_slack_goes_first(prefill_order, expected):
    world = World(one_at_a_time(prefill_order=prefill_order))
    for key, deadline in [("a", 50), ("b", 40), ("c", 30), ("d", float("inf"))]:
        world.submit(request(key, [1], deadline=deadline))
    world.run()
    assert entered(world) == list(expected)


def test_slack_counts_the_prefill_still_to_do():
    world = World(one_at_a_time(prefill_seconds_per_token=0.5))
    world.submit(request("short", [1], deadline=30))
    world.submit(request("long", range(40), deadline=40))
    world.run()
    assert entered(world) == ["long", "short"]


def test_the_wanted_first_token_orders_like_a_deadline_but_ends_nothing():
    world = World(one_at_a_time())
    world.submit(request("a", [1], first_token_by=30))
    world.submit(request("b", [1], first_token_by=20))
    world.run(seconds_per_step=5.0)
    assert entered(world) == ["b", "a"]
    assert set(world.ends.values()) == {EndReason.LENGTH}


def test_an_urgent_newcomer_overtakes_a_long_prefill_between_chunks():
    world = World(config(max_batch_tokens=8))
    world.submit(request("long", range(32), deadline=50))
    world.plan()
    world.submit(request("urgent", range(40, 48), deadline=10))
    assert [row.key for row in world.plan().rows] == ["urgent"]
    world.run()
    world.check_answers()


def test_who_cannot_make_it_goes_last_and_runs_if_nobody_else_wants():
    world = World(one_at_a_time(prefill_seconds_per_token=1.0))
    world.submit(request("too late", range(30), deadline=20))
    world.submit(request("in time", [1], deadline=19, priority=1))
    world.run()
    assert entered(world) == ["in time", "too late"]


def test_the_late_do_not_outrank_those_who_are_served_before_them():
    """Else the two would take the slot from each other for ever."""
    world = World(one_at_a_time(prefill_seconds_per_token=1.0))
    world.submit(request("batch", range(20), priority=2))
    world.plan()
    world.submit(request("late", range(20), deadline=5))
    world.run()
    assert [opened.key for plan in world.plans for opened in plan.opened] == ["batch", "late"]


def test_who_is_no_longer_late_because_prefill_became_faster_goes_first_again():
    world = World(one_at_a_time(prefill_seconds_per_token=1.0))
    world.submit(request("running", [1] * 7, max_tokens=1))
    world.submit(request("first class", range(20), deadline=19))
    world.submit(request("batch", range(20, 40), priority=2))
    world.plan()
    assert world.plan() is None
    world.now = 0.7  # 0.1 s a token: the estimate falls to 0.82 s, and 16.4 s of prefill are in time again
    world.complete()
    world.run()
    assert entered(world) == ["running", "first class", "batch"]


def test_what_is_over_is_forgotten_long_before_its_deadline():
    world = World(config())
    for key in range(2000):
        world.submit(request(key, [1], deadline=600, priority=1, first_token_by=500))
        if key >= 10:
            world.cancel(key - 10)
    (line,) = world.scheduler._waiting._lines.values()
    for heap in (world.scheduler._deadlines, line._ready, line._late, line._aging):
        assert len(heap) < 100


def test_classes_go_strictly_before_slack():
    world = World(one_at_a_time())
    world.submit(request("batch", [1], priority=2, deadline=5))
    world.submit(request("sheddable", [1], priority=1, deadline=10))
    world.submit(request("interactive", [1], priority=0))
    world.run()
    assert entered(world) == ["interactive", "sheddable", "batch"]


@pytest.mark.parametrize("fields", [{"priority": 2}, {"priority": 0}, {"first_token_by": -1.0}])
def test_nobody_is_overtaken_by_those_who_arrive_after_its_patience(fields):
    """A steady overload of urgent requests of the first class: two arrive for each that can be served."""
    world = World(one_at_a_time(patience_seconds=20.0, prefill_seconds_per_token=0.01))
    world.submit(request("old", range(20), **fields))
    for number in range(200):
        for twin in "ab":
            world.submit(request((number, twin), [number], max_tokens=1, deadline=world.now + 8))
        while world.plan() is not None:
            pass
        world.now += 1.0
        world.complete()
        world.expire()
        if ("old", 0) in world.ends:
            break
    assert world.ends["old", 0] is EndReason.LENGTH
    assert world.now <= 20 + 8 + 8 + 11, "patience, who was there before that ended, its own steps"
    assert world.now > 12, "until then all of them had less slack"


def fill(world: World, key, tokens: int, **fields) -> None:
    """Let a request prefill and hold blocks for `tokens` tokens, its answer far from over."""
    world.submit(request(key, [hash(key) % 50] * tokens, max_tokens=16, **fields))
    world.plan()
    world.complete()


@pytest.mark.parametrize(
    ("first", "second", "victim"),
    [
        ({"priority": 1}, {"priority": 0}, "first"),
        ({"priority": 0}, {"priority": 1}, "second"),
        ({"deadline": 50}, {"deadline": 40}, "first"),
        ({"deadline": 40}, {"deadline": 50}, "second"),
        ({}, {"deadline": 50}, "first"),
        ({}, {}, "second"),
    ],
)
def test_when_blocks_run_out_the_last_in_rank_gives_way_and_still_says_the_same(first, second, victim):
    world = World(config(num_blocks=9, max_batch_tokens=32, prefix_cache=False))
    fill(world, "first", 12, **first)
    fill(world, "second", 12, **second)
    world.run()
    times_entered = [opened.key for plan in world.plans for opened in plan.opened]
    assert times_entered == ["first", "second", victim]
    assert set(world.ends.values()) == {EndReason.LENGTH}
    world.check_answers()
    world.check_idle()


def test_a_preempted_sequence_replays_its_tokens_as_prefill():
    world = World(config(num_blocks=9, max_batch_tokens=32, prefix_cache=False))
    fill(world, "stays", 12)
    fill(world, "goes", 12)
    world.run()
    again = [opened for plan in world.plans for opened in plan.opened][-1]
    row = next(row for plan in world.plans if again in plan.opened for row in plan.rows if row.key == "goes")
    assert again.num_prompt_tokens == 12
    assert len(again.history) > 12
    assert row.token_ids == again.history


def test_a_higher_class_takes_the_slot_of_a_lower_one():
    world = World(one_at_a_time())
    world.submit(request("batch", [1], priority=2, max_tokens=30))
    for _ in range(5):
        world.plan()
        world.complete()
    world.submit(request("interactive", [2]))
    world.run()
    assert [opened.key for plan in world.plans for opened in plan.opened] == ["batch", "interactive", "batch"]
    world.check_answers()


def test_equal_classes_do_not_take_each_others_slots():
    world = World(one_at_a_time())
    world.submit(request("a", [1], deadline=100))
    world.plan()
    world.submit(request("b", [1], deadline=5))
    world.run()
    assert [opened.key for plan in world.plans for opened in plan.opened] == ["a", "b"]


def test_many_more_than_fit_all_come_through_as_if_alone():
    rng = random.Random(7)
    world = World(config(num_blocks=14, max_sequences=6, max_batch_tokens=12, num_lanes=2))
    for key in range(60):
        prompt = [rng.randrange(3) for _ in range(rng.randrange(1, 16))]
        world.submit(request(key, prompt, n=rng.choice([1, 1, 2]), max_tokens=12, priority=rng.randrange(2)))
    world.run()
    preempted = sum(len(plan.opened) for plan in world.plans) - len(world.tokens)
    assert preempted > 20
    assert len(world.ends) == len(world.tokens)
    world.check_answers()
    world.check_idle()


def test_without_credit_a_request_pauses_keeps_its_slot_and_resumes():
    world = World(config())
    world.submit(request("r", range(5), max_tokens=8, credit=3))
    world.run()
    assert len(world.tokens["r", 0]) == 3
    assert world.scheduler.load().running == 1
    world.scheduler.add_credit("r", 2)
    world.run()
    assert len(world.tokens["r", 0]) == 5
    assert sum(len(plan.opened) for plan in world.plans) == 1
    world.scheduler.add_credit("r", 100)
    world.run()
    world.check_answers()
    world.check_idle()


def test_a_request_without_initial_credit_waits_for_it():
    world = World(config())
    world.submit(request("r", range(5), credit=0))
    assert world.plan() is None
    world.scheduler.add_credit("r", 8)
    world.run()
    world.check_answers()


def test_choices_share_their_requests_credit():
    world = World(config())
    world.submit(request("r", range(5), n=3, max_tokens=8, credit=7))
    world.run()
    assert sum(map(len, world.tokens.values())) == 7
    world.scheduler.add_credit("r", 17)
    world.run()
    world.check_answers()
    world.check_idle()


def test_the_credit_of_a_token_thrown_away_comes_back():
    free, _ = alone(request("r", range(5), max_tokens=8), ChoiceStart(0))
    world = World(config())
    world.submit(request("r", range(5), n=2, max_tokens=8, stop_token_ids=frozenset(free[:1]), credit=9))
    world.run()
    expected = [alone(world.requests["r"], ChoiceStart(choice))[0] for choice in (0, 1)]
    assert sum(map(len, expected)) <= 9, "so that credit is enough if none is lost"
    world.check_answers()
    world.check_idle()


def test_a_paused_request_gives_way_to_one_that_can_use_its_slot():
    world = World(one_at_a_time())
    world.submit(request("paused", range(5), max_tokens=6, credit=2))
    world.run()
    world.submit(request("next", [1]))
    world.run()
    assert ("next", 0) in world.ends
    world.scheduler.add_credit("paused", 10)
    world.run()
    world.check_answers()
    world.check_idle()


@pytest.mark.parametrize("blocked", ["slot", "blocks"])
def test_a_request_as_large_as_the_pool_gets_it_from_paused_ones(blocked):
    world = World(config(num_blocks=12, max_sequences=3 if blocked == "slot" else 4, max_batch_tokens=64))
    for key in range(3):
        world.submit(request(key, [key] * 9, max_tokens=4, credit=1))
    world.run()
    world.submit(request("large", range(40), max_tokens=9))
    world.run()
    assert ("large", 0) in world.ends


STEPS_TO = {"queued": 0, "prefill in flight": 0, "prefill": 1, "fork": 3, "decode in flight": 6, "decode": 6}
PHASES = [*STEPS_TO, "paused"]


def at_phase(world: World, phase: str) -> None:
    """Bring request "r" (3 choices, 20 prompt tokens) to a phase of its life."""
    if phase == "queued":
        world.submit(request("other", range(4), max_tokens=40))
        world.plan()
    world.submit(request("r", range(20), n=3, max_tokens=12, credit=4 if phase == "paused" else None, deadline=30))
    if phase == "paused":
        world.run()
        return
    for _ in range(STEPS_TO[phase]):
        world.plan()
        world.complete()
    if phase.endswith("in flight"):
        world.plan()
        world.plan()


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_in_every_phase_frees_everything_and_leaves_others_alone(phase):
    world = World(config(max_sequences=1 if phase == "queued" else 4, max_batch_tokens=8))
    at_phase(world, phase)
    world.cancel("r")
    world.cancel("r")
    world.submit(request("after", range(20)))
    world.run()
    assert ("after", 0) in world.ends
    world.check_answers()
    world.check_idle()


@pytest.mark.parametrize("phase", PHASES)
def test_a_deadline_in_every_phase_ends_each_choice_once_and_stops_all_work(phase):
    world = World(config(max_sequences=1 if phase == "queued" else 4, max_batch_tokens=8))
    at_phase(world, phase)
    assert world.scheduler.next_deadline == 30
    assert world.expire() == []
    world.now = 30.0
    planned = world.plan()
    assert planned is None or {row.key for row in planned.rows} == {"other"}
    events = world.expire()
    assert [(event.choice, event.end) for event in events] == [(choice, EndReason.DEADLINE) for choice in range(3)]
    world.run()
    world.check_answers()
    world.check_idle()


def test_tokens_that_arrive_after_the_deadline_was_told_are_thrown_away():
    world = World(config())
    world.submit(request("r", range(4), deadline=1))
    world.plan()
    world.now = 2.0
    world.expire()
    assert world.complete() == []
    world.check_idle()


def test_a_key_can_be_used_again_at_once_while_its_last_owner_is_in_flight():
    world = World(config())
    world.submit(request("r", range(4)))
    world.plan()
    world.scheduler.cancel("r")
    world.submit(request("r", [3, 1]))
    world.run()
    world.check_answers()
    world.check_idle()
