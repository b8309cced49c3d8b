"""What a step holds: budget, chunks, lanes, forks, prefix hits, and tokens that arrive after their sequence's end."""

from __future__ import annotations

import math

import pytest
from scheduler_world import World, alone, config, request

from cluster.replica.plan import ChoiceStart, EndReason, Refused, SchedulerConfig
from cluster.replica.rates import PrefillRate, PrefillShare


def chunks(world: World, key) -> list[int]:
    return [row.num_tokens for plan in world.plans for row in plan.rows if row.key == key and row.token_ids is not None]


def test_a_long_prompt_is_computed_in_chunks_and_only_the_last_one_samples():
    world = World(config())
    world.submit(request("long", range(39)))
    world.run()
    prefill = [row for plan in world.plans for row in plan.rows if row.token_ids is not None]
    assert [(row.num_tokens, row.start_position, row.samples) for row in prefill] == [
        (16, 0, False),
        (16, 16, False),
        (7, 32, True),
    ]
    world.check_answers()


def test_decodes_come_first_and_prefill_gets_the_rest_of_the_budget():
    world = World(config())
    world.submit(request("a", range(4)))
    world.plan()
    world.submit(request("b", range(10, 49)))
    plan = world.plan()
    assert [(row.key, row.num_tokens, row.token_ids is None) for row in plan.rows] == [("a", 1, True), ("b", 15, False)]
    assert (plan.num_decode_tokens, plan.num_prefill_tokens) == (1, 15)
    assert plan.context_tokens == 5 + 15


def test_with_more_decodes_than_budget_each_gets_its_turn():
    world = World(config(max_batch_tokens=2, max_sequences=4))
    for key in "abcd":
        world.submit(request(key, [ord(key)], max_tokens=9, credit=1))
    world.run()
    for key in "abcd":
        world.scheduler.add_credit(key, 8)
    begin = len(world.plans)
    world.run()
    served = [row.key for plan in world.plans[begin:] for row in plan.rows]
    assert all(set(served[turn : turn + 4]) == set("abcd") for turn in range(0, 32, 4))
    world.check_answers()


@pytest.mark.parametrize(("num_lanes", "depth"), [(1, 2), (2, 3), (4, 5)])
def test_a_step_more_than_lanes_is_in_flight(num_lanes, depth):
    world = World(config(num_lanes=num_lanes, max_sequences=8, max_batch_tokens=8))
    for key in range(8):
        world.submit(request(key, [key], max_tokens=20))
        world.plan()
    while world.plan() is not None:
        pass
    assert len(world.in_flight) == depth
    world.run()
    world.check_answers()


def test_at_most_two_tokens_of_a_sequence_are_unknown():
    world = World(config(num_lanes=3))
    world.submit(request("r", [1], max_tokens=20))
    while world.plan() is not None:
        pass
    assert len(world.in_flight) == 2


def test_chunks_of_one_prompt_fill_all_stages():
    world = World(config(num_lanes=3, max_batch_tokens=8))
    world.submit(request("r", range(39)))
    while world.plan() is not None:
        pass
    assert [plan.num_prefill_tokens for plan in world.in_flight] == [8, 8, 8, 8]


def test_lanes_are_balanced_and_take_turns():
    world = World(config(num_lanes=2, max_sequences=8, max_batch_tokens=64, num_blocks=64))
    for key in range(6):
        world.submit(request(key, [key, 1, 2], max_tokens=20))
    for _ in range(12):
        while world.plan() is not None:
            pass
        world.complete()
    assert [len(lane) for lane in world.scheduler._residents.lanes] == [3, 3]
    assert [plan.lane for plan in world.plans[-4:]] in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert all(len(plan.rows) == 3 for plan in world.plans[-4:])


def test_nothing_is_planned_behind_a_long_prefill():
    world = World(config(look_ahead_seconds=0.2, prefill_seconds_per_token=0.1))
    world.submit(request("long", range(39)))
    assert world.plan().num_prefill_tokens == 16
    assert world.plan() is None, "1.6 s of prefill are in flight"
    world.complete()
    world.cancel("long")
    world.submit(request("next", [1]))
    assert [row.key for row in world.plan().rows] == ["next"]


def test_an_equal_prefix_is_found_and_at_least_one_token_is_computed():
    world = World(config())
    for key in ("first", "same", "longer", "shorter"):
        length = {"longer": 15, "shorter": 7}.get(key, 12)
        world.submit(request(key, range(length), max_tokens=1))
        world.run()
    assert chunks(world, "same") == [4], "of three equal blocks the last is computed again for its last token"
    assert chunks(world, "longer") == [3]
    assert chunks(world, "shorter") == [3]
    assert world.cached == {"first": 0, "same": 8, "longer": 12, "shorter": 4}
    load = world.scheduler.load()
    assert (load.hit_tokens, load.missed_tokens) == (24, 12 + 4 + 3 + 3)
    world.check_answers()


def test_a_prefix_is_shared_while_the_step_that_computes_it_is_in_flight():
    world = World(config(max_batch_tokens=64))
    world.submit(request("a", range(12)))
    world.plan()
    world.submit(request("b", range(12)))
    world.plan()
    assert chunks(world, "b") == [4]
    world.run()
    world.check_answers()


def test_equal_prompts_in_one_step_do_not_read_each_other():
    world = World(config(max_batch_tokens=64))
    world.submit(request("a", range(12)))
    world.submit(request("b", range(12)))
    assert [row.num_tokens for row in world.plan().rows] == [12, 12]
    world.run()
    world.check_answers()


def test_the_second_turn_finds_the_first_turns_answer():
    world = World(config())
    world.submit(request("turn 1", range(10), max_tokens=8))
    world.run()
    history = [*range(10), *world.tokens["turn 1", 0]]
    world.submit(request("turn 2", [*history, 1, 2], max_tokens=2))
    world.run()
    assert world.cached["turn 2"] == 16, "the answer's last token was never computed"
    world.check_answers()


@pytest.mark.parametrize("change", [{"cache_domain": b"other"}, {"prompt": [9, *range(1, 12)]}])
def test_other_domains_and_other_tokens_share_nothing(change):
    world = World(config())
    world.submit(request("a", range(12)))
    world.run()
    world.submit(request(**{"key": "b", "prompt": range(12), **change}))
    world.run()
    assert world.cached["b"] == 0


def test_without_prefix_cache_nothing_is_found():
    world = World(config(prefix_cache=False))
    for key in "ab":
        world.submit(request(key, range(12)))
        world.run()
    assert world.scheduler.load().hit_tokens == 0
    assert world.scheduler.blocks.num_cached == 0
    world.check_answers()


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("length", [3, 8, 10])
def test_choices_compute_the_prompt_once(prefix_cache, length):
    world = World(config(prefix_cache=prefix_cache, max_sequences=4))
    world.submit(request("r", range(length), n=4, max_tokens=6))
    world.run()
    assert sum(plan.num_prefill_tokens for plan in world.plans) == length + 3, "then one token for each other choice"
    copies = sum(len(plan.block_copies) for plan in world.plans)
    assert copies == 3, "the block of the prompt's last token is copied, the others are shared"
    assert world.cached["r"] == 0, "a fork is no cache hit"
    assert len({tuple(tokens) for tokens in world.tokens.values()}) == 4
    world.check_answers()
    world.check_idle()


def test_choices_fork_in_time_even_if_the_first_ends_at_once():
    first, _ = alone(request("r", range(9), max_tokens=1), ChoiceStart(0))
    world = World(config())
    world.submit(request("r", range(9), n=3, max_tokens=6, stop_token_ids=frozenset(first)))
    world.run()
    assert world.ends["r", 0] is EndReason.STOP
    world.check_answers()
    world.check_idle()


def test_continuation_goes_on_where_another_replica_stopped():
    whole = request("r", range(6), n=2, max_tokens=10)
    expected = [alone(whole, start)[0] for start in whole.choices]
    world = World(config())
    world.submit(request("r", range(6), n=2, emitted=[expected[0][:4], expected[1][:7]], max_tokens=10))
    world.run()
    assert world.tokens["r", 0] == expected[0][4:]
    assert world.tokens["r", 1] == expected[1][7:]


@pytest.mark.parametrize("index", [0, 1, 5])
@pytest.mark.parametrize("min_tokens", [0, 1, 5, 6])
def test_a_stop_token_ends_a_choice_but_not_before_min_tokens(index, min_tokens):
    free, _ = alone(request("r", range(5), max_tokens=8), ChoiceStart(0))
    stop = frozenset({free[index]})
    world = World(config())
    world.submit(request("r", range(5), max_tokens=8, min_tokens=min_tokens, stop_token_ids=stop))
    world.run()
    first = next((i for i, token in enumerate(free) if token in stop and i >= min_tokens), None)
    assert world.tokens["r", 0] == (free if first is None else free[: first + 1])
    assert world.ends["r", 0] is (EndReason.LENGTH if first is None else EndReason.STOP)


def test_a_token_computed_after_the_stop_is_thrown_away_and_its_slot_kept_until_then():
    free, _ = alone(request("r", range(5), max_tokens=8), ChoiceStart(0))
    world = World(config(max_sequences=1))
    world.submit(request("r", range(5), max_tokens=8, stop_token_ids=frozenset(free[:1])))
    world.submit(request("next", [7]))
    world.plan()
    world.plan()
    assert [event.end for event in world.complete()] == [EndReason.STOP]
    assert world.plan() is None, "the only slot is still named by the step after the stop"
    assert world.complete() == []
    assert world.plan().closed_slots == (0,)
    world.run()
    world.check_answers()


def test_no_row_is_planned_beyond_the_last_token():
    world = World(config())
    world.submit(request("r", range(5), max_tokens=3))
    world.run()
    assert [sum(row.samples for row in plan.rows) for plan in world.plans] == [1, 1, 1]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"prompt": []}, "prompt"),
        ({"n": 0}, "choice"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": range(60), "max_tokens": 5}, "context"),
        ({"prompt": range(4), "max_tokens": 60, "n": 9}, "memory"),
        ({"emitted": [[1] * 8]}, "already"),
    ],
)
def test_what_can_never_run_is_refused(fields, limit):
    world = World(config())
    with pytest.raises(Refused, match=limit):
        world.submit(request(**{"key": "r", "prompt": range(4), **fields}))
    world.check_idle()


def test_what_just_fits_runs():
    world = World(config(num_blocks=16))
    world.submit(request("r", range(4), max_tokens=60))
    world.run()
    world.submit(request("n", range(33), n=2, max_tokens=16))
    world.run()
    world.check_answers()
    world.check_idle()


def test_a_key_lives_once():
    world = World(config())
    world.submit(request("r", [1]))
    with pytest.raises(ValueError, match="lives already"):
        world.scheduler.submit(request("r", [2]), 0.0)


def test_results_that_were_not_planned_are_refused():
    world = World(config())
    world.submit(request("r", range(5)))
    plan = world.plan()
    for step, sampled in [(plan.step + 1, [(plan.rows[0].slot, 1)]), (plan.step, [(3, 1)]), (plan.step, [])]:
        with pytest.raises(ValueError, match=f"step {step}"):
            world.scheduler.complete(step, sampled, 0.0)
    world.run()
    world.check_answers()


def test_observers_hear_of_steps_and_of_stored_and_evicted_blocks():
    class Prefixes(set):
        stored = set.add
        evicted = set.remove

    prefixes, steps = Prefixes(), []
    world = World(config(num_blocks=8), block_observer=prefixes, step_observer=steps.append)
    for first in range(6):
        world.submit(request(first, [first, *range(12)], max_tokens=5))
        world.run(seconds_per_step=0.5)
        assert prefixes == set(world.scheduler.blocks._by_key)
    assert 0 < len(prefixes) < 8
    assert [step.step for step in steps] == list(range(1, len(world.plans) + 1))
    assert sum(step.num_prefill_tokens for step in steps) == world.scheduler.load().missed_tokens
    assert all(step.seconds == 0.5 for step in steps)


def test_load_counts_running_waiting_and_pending():
    world = World(config(max_sequences=2))
    for key in range(4):
        world.submit(request(key, [key] * 10))
    load = world.scheduler.load()
    assert (load.running, load.waiting, load.pending_prefill_tokens) == (0, 4, 40)
    world.plan()
    load = world.scheduler.load()
    assert (load.running, load.waiting, load.pending_prefill_tokens) == (1, 3, 24)
    assert (load.context_tokens, load.used_blocks, load.total_blocks) == (10, 6, 32)
    world.run()
    world.check_idle()


def test_rates_are_learnt_from_time_that_passed():
    rate = PrefillRate(0.0)
    rate.learn(1.0, num_prefill_tokens=10, num_decode_tokens=20)
    assert rate.seconds_per_token == 0, "mostly decode says little about prefill"
    rate.learn(1.0, num_prefill_tokens=100, num_decode_tokens=0)
    assert rate.seconds_per_token == pytest.approx(0.01)
    share = PrefillShare()
    share.add(0.0, 0.0)
    for now in range(1, 50):
        share.add(float(now), 0.25)
    assert share.value == pytest.approx(0.25, abs=0.01)
    share.add(1000.0, 0.0)
    assert share.value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["max_batch_tokens", "max_sequences", "block_size", "num_blocks", "num_lanes"])
def test_limits_must_be_positive(name):
    with pytest.raises(ValueError, match=name):
        config(**{name: 0})


def test_deadlines_default_to_never():
    assert request("r", [1]).deadline == math.inf
    assert World(config()).scheduler.next_deadline == math.inf
    assert SchedulerConfig(1, 1, 1, 1, 1).prefill_order == "slack"
