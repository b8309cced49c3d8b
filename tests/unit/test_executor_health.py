"""When a rank counts as lost: tables over the pure decider."""

from __future__ import annotations

import pytest

from cluster.protocol import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS
from cluster.replica.health import IDLE_SILENCE_SECONDS, STARTING_SILENCE_SECONDS, ObservedClock, RankHealth
from cluster.replica.step_times import UNKNOWN_SECONDS, StepTimes


def ready(**fields: float) -> RankHealth:
    return RankHealth(**{"heard_at": 0.0, "moved_at": 0.0, "progress": 0, "ready": True, **fields})


@pytest.mark.parametrize(
    ("predicted", "silence", "lost"),
    [
        (0.0, DEAD_AFTER_SECONDS, False),
        (0.0, DEAD_AFTER_SECONDS + 0.01, True),
        (1.0, 4.9, False),
        (1.0, 5.1, True),
    ],
)
def test_a_busy_rank_must_speak(predicted: float, silence: float, lost: bool) -> None:
    health = ready()
    health.given_step(0.0, 1)
    assert bool(health.complaint(silence, predicted)) is lost


def test_heartbeats_alone_do_not_keep_a_busy_rank_alive() -> None:
    """A hang in a collective: the heartbeat thread goes on, the counter does not."""
    health = ready()
    health.given_step(0.0, 1)
    for tick in range(1, 5):
        health.heard(tick * HEARTBEAT_SECONDS, progress=7, finished_step=0)
    complaint = health.complaint(1.01, 0.1)
    assert complaint is not None
    assert "no progress for 0.76 s in step 1" in complaint


def test_progress_inside_a_long_step_is_life() -> None:
    health = ready()
    health.given_step(0.0, 1)
    for tick in range(1, 100):
        now = tick * HEARTBEAT_SECONDS
        health.heard(now, progress=tick, finished_step=0)
        assert health.complaint(now + 0.5, 0.1) is None


def test_an_idle_rank_need_not_progress_but_must_not_vanish() -> None:
    health = ready(finished_step=5, sent_step=5)
    health.heard(100.0, progress=0, finished_step=5)
    assert health.complaint(100.0 + IDLE_SILENCE_SECONDS - 0.1, 0.1) is None
    assert "while idle" in (health.complaint(100.0 + IDLE_SILENCE_SECONDS + 0.1, 0.1) or "")


def test_waiting_starts_with_the_work_not_before_it() -> None:
    health = ready(finished_step=5, sent_step=5, heard_at=99.9)
    health.given_step(100.0, 6)
    assert health.complaint(100.6, 0.1) is None


def test_a_second_step_does_not_restart_the_wait() -> None:
    health = ready()
    health.given_step(0.0, 1)
    health.given_step(0.7, 2)
    health.heard(0.75, progress=0, finished_step=0)
    assert "no progress" in (health.complaint(0.8, 0.1) or "")


def test_a_starting_rank_gets_time() -> None:
    health = RankHealth(heard_at=0.0, moved_at=0.0)
    assert health.complaint(STARTING_SILENCE_SECONDS - 1, 0.0) is None
    assert "while starting" in (health.complaint(STARTING_SILENCE_SECONDS + 1, 0.0) or "")


def test_a_clock_that_slept_accuses_nobody() -> None:
    clock = ObservedClock(0.0)
    clock.tick(0.25, 0.25)
    assert clock.observed(0.3) == pytest.approx(0.3)
    clock.tick(0.6, 0.25)  # a little late is time like any other
    assert clock.observed(0.6) == pytest.approx(0.6)
    clock.tick(5.85, 0.25)  # stood still for five seconds
    assert clock.observed(5.85) == pytest.approx(0.85)


def test_steps_are_predicted_from_their_kind() -> None:
    times = StepTimes()
    assert times.predict(0) == times.predict(100) == UNKNOWN_SECONDS
    times.learn(0, 0.02)
    assert times.predict(0) == pytest.approx(0.02)
    assert times.predict(100) == UNKNOWN_SECONDS
    times.learn(100, 0.5)
    assert times.predict(200) == pytest.approx(1.0)
    assert times.predict(1) == pytest.approx(0.02), "never below a decode step"
    times.learn(0, 0.12)
    assert 0.02 < times.predict(0) < 0.12
