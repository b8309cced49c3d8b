"""The life of a replica in the reconciler's eyes, round by round, without clock or processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.control.reconcile import (
    Health,
    Observation,
    Phase,
    Policy,
    Record,
    Start,
    Stop,
    reconcile,
)
from cluster.ids import Epoch, ReplicaId

ONE = ReplicaId("m/0")
POLICY = Policy(start_timeout=60.0, silence_limit=5.0, first_backoff=1.0, longest_backoff=8.0, healthy_after=30.0)


class Life:
    """One replica through many rounds."""

    def __init__(self, record: Record | None = None) -> None:
        self.records = {ONE: record} if record else {}
        self.wanted = frozenset({ONE})

    def at(self, now: float, health: Health | None = None, *, heard: float | None = None, epoch: int | None = None):
        seen = {}
        if health is not None:
            number = Epoch(epoch) if epoch is not None else self.record.epoch
            seen = {ONE: Observation(number, health, now if heard is None else heard, f"it is {health.value}")}
        self.records, actions = reconcile(self.wanted, self.records, seen, now, POLICY)
        return actions

    @property
    def record(self) -> Record:
        return self.records[ONE]


def test_a_wanted_replica_starts_loads_and_becomes_ready() -> None:
    life = Life()
    assert life.at(0.0) == [Start(ONE, Epoch(1))]
    assert life.at(1.0, Health.LOADING) == []
    assert life.at(2.0, Health.READY) == []
    assert life.record.phase is Phase.READY


def test_a_broken_replica_is_stopped_then_started_at_the_next_epoch() -> None:
    life = Life(Record(ONE, Phase.READY, Epoch(4)))
    assert life.at(10.0, Health.BROKEN) == [Stop(ONE, Epoch(4), graceful=False)]
    assert (life.record.phase, life.record.reason) == (Phase.FAILED, "it is broken")
    assert life.at(10.9) == []
    assert life.at(11.0) == [Start(ONE, Epoch(5))]
    assert life.record.reason == "started again after: it is broken"
    life.at(12.0, Health.READY)
    assert life.record.reason == ""


def test_observations_of_an_older_epoch_are_not_believed() -> None:
    life = Life(Record(ONE, Phase.STARTING, Epoch(5), since=10.0))
    assert life.at(11.0, Health.BROKEN, epoch=4) == []
    assert life.at(11.1, Health.READY, epoch=4) == []
    assert life.record.phase is Phase.STARTING


def test_backoff_doubles_to_its_bound_and_health_forgives() -> None:
    life, now, waits = Life(), 0.0, []
    for _ in range(6):
        assert isinstance(life.at(now)[0], Start)
        life.at(now, Health.BROKEN)
        waits.append(life.record.retry_at - now)
        now = life.record.retry_at
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    life.at(now)
    life.at(now + 1, Health.READY)
    life.at(now + 30.9, Health.READY)
    assert life.record.failures == 6
    life.at(now + 31, Health.READY)
    assert life.record.failures == 0


def test_a_silent_engine_is_lost_after_the_limit_and_not_before() -> None:
    life = Life(Record(ONE, Phase.READY, Epoch(1), since=0.0))
    assert life.at(104.9, Health.READY, heard=100.0) == []
    assert life.at(105.0, Health.READY, heard=100.0) == [Stop(ONE, Epoch(1), graceful=False)]
    assert "not answered for 5.0 s" in life.record.reason


def test_a_start_that_takes_too_long_fails_and_says_what_it_waited_for() -> None:
    life = Life()
    life.at(0.0)
    assert life.at(59.9, Health.LOADING) == []
    assert life.at(60.0, Health.LOADING) == [Stop(ONE, Epoch(1), graceful=False)]
    assert life.record.reason == "not ready 60 s after its start: it is loading"


def test_no_room_is_waiting_not_failure() -> None:
    life = Life()
    life.at(0.0)
    assert life.at(0.1, Health.UNPLACED) == [Stop(ONE, Epoch(1), graceful=False)]
    assert (life.record.phase, life.record.failures) == (Phase.PENDING, 0)
    assert life.record.reason == "it is unplaced"
    assert life.at(1.0) == []
    assert life.at(1.1) == [Start(ONE, Epoch(2))]


def test_what_is_no_longer_wanted_is_stopped_gracefully_and_forgotten() -> None:
    life = Life(Record(ONE, Phase.READY, Epoch(3)))
    life.wanted = frozenset()
    assert life.at(1.0, Health.READY, epoch=3) == [Stop(ONE, Epoch(3), graceful=True)]
    assert life.records == {}
    assert life.at(2.0) == []


@given(st.lists(st.tuples(st.sampled_from([None, *Health]), st.floats(0.01, 40.0)), max_size=60))
def test_whatever_happens_each_start_has_a_new_epoch_and_follows_the_stop_of_the_old(events) -> None:
    life, now, running, epochs = Life(), 0.0, None, []
    for health, pause in events:
        now += pause
        for action in life.at(now, health if ONE in life.records else None):
            if isinstance(action, Start):
                assert running is None
                running = action.epoch
                epochs.append(action.epoch)
            else:
                assert action.epoch == running
                running = None
    assert epochs == sorted(set(epochs))
