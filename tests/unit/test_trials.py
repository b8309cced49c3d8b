"""Suspects begin alone, in the order in which requests came; nobody waits for ever."""

from __future__ import annotations

import random

from cluster.replica.plan import RequestKey
from cluster.replica.trials import Trials


def key(number: int) -> RequestKey:
    return (1, number)


def test_a_suspect_waits_for_who_is_in_its_first_steps_and_holds_up_who_comes_after() -> None:
    trials = Trials()
    assert trials.enter(key(1), is_suspect=False) == [key(1)]
    assert trials.enter(key(2), is_suspect=True) == []
    assert trials.enter(key(3), is_suspect=False) == [], "in turn"
    assert trials.begun(key(1)) == [key(2)]
    assert trials.enter(key(4), is_suspect=True) == []
    assert trials.begun(key(1)) == [], "it has begun long since"
    assert trials.begun(key(2)) == [key(3)]
    assert trials.begun(key(3)) == [key(4)]


def test_without_suspects_nobody_waits() -> None:
    trials = Trials()
    for number in range(100):
        assert trials.enter(key(number), is_suspect=False) == [key(number)]


def test_who_gives_up_while_waiting_holds_up_nobody() -> None:
    trials = Trials()
    trials.enter(key(1), is_suspect=True)
    assert trials.enter(key(2), is_suspect=True) == []
    assert trials.enter(key(3), is_suspect=False) == []
    assert trials.begun(key(2)) == [], "gone before it began"
    assert trials.begun(key(1)) == [key(3)]


def test_in_any_order_of_events_a_suspect_is_alone_and_all_have_their_turn() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        trials, suspects, beginning, come = Trials(), set[RequestKey](), set[RequestKey](), 0
        waiting: set[RequestKey] = set()
        while come < 40 or beginning or waiting:
            if come < 40 and rng.random() < 0.5:
                name = key(come)
                come += 1
                if rng.random() < 0.4:
                    suspects.add(name)
                waiting.add(name)
                entered = trials.enter(name, is_suspect=name in suspects)
            else:
                candidates = sorted(beginning) or sorted(waiting)
                if not candidates:
                    continue
                gone = rng.choice(candidates if rng.random() < 0.8 else sorted(beginning | waiting))
                beginning.discard(gone)
                waiting.discard(gone)
                entered = trials.begun(gone)
            assert set(entered) <= waiting
            waiting -= set(entered)
            beginning |= set(entered)
            assert not beginning & suspects or len(beginning) == 1
            assert beginning or not waiting, "somebody always runs"
