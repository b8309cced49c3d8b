"""Which rank is slow: the one that its peers wait for, long enough, and nobody else."""

from __future__ import annotations

import pytest

from argosy.internal.v1 import step_pb2
from cluster.replica.slowness import WINDOW_SECONDS, WINDOWS_TO_CHANGE, Change, Slowness, Work
from model.parallel.dims import RankCoordinates

A, B, C = (RankCoordinates(0, rank) for rank in range(3))
ALONE = RankCoordinates(1, 0)


class World:
    """Ranks that count steps at a pace that the test sets, in milliseconds a step."""

    def __init__(self, *ranks: RankCoordinates) -> None:
        self.slowness = Slowness(ranks)
        self.now = 0.0
        self.work = {rank: Work(0, 0.0) for rank in ranks}
        self.slowness.observe(self.now, self.work)

    def windows(self, count: int, steps: int = 50, **milliseconds: float) -> list[Change]:
        paces = {{"a": A, "b": B, "c": C, "alone": ALONE}[name]: ms / 1e3 for name, ms in milliseconds.items()}
        changes = []
        for _ in range(count):
            self.now += WINDOW_SECONDS
            for rank, pace in paces.items():
                before = self.work[rank]
                self.work[rank] = Work(before.steps + steps, before.seconds + steps * pace)
            changes += self.slowness.observe(self.now, self.work)
        return changes


def test_a_rank_at_half_speed_is_marked_and_cleared_once_it_recovers() -> None:
    world = World(A, B)
    assert world.windows(10, a=10, b=10.5) == []
    assert world.windows(WINDOWS_TO_CHANGE - 1, a=10, b=21) == []
    (change,) = world.windows(5, a=10, b=21)
    assert (change.rank, change.is_slow) == (B, True)
    assert change.step_seconds == pytest.approx(0.021)
    assert change.peer_seconds == pytest.approx(0.010)
    assert world.slowness.slow == {B}
    (change,) = world.windows(5, a=10, b=10)
    assert (change.rank, change.is_slow) == (B, False)
    assert not world.slowness.slow


def test_now_and_then_is_not_slow() -> None:
    world = World(A, B, C)
    for _ in range(10):
        assert world.windows(WINDOWS_TO_CHANGE - 1, a=10, b=40, c=10) == []
        assert world.windows(1, a=10, b=10, c=10) == []


def test_a_machine_that_is_slow_as_a_whole_has_no_slow_rank() -> None:
    world = World(A, B, C)
    world.windows(5, a=10, b=10, c=10)
    assert world.windows(10, a=50, b=52, c=49) == []


@pytest.mark.parametrize(
    ("steps", "paces"),
    [(50, {"a": 0.2, "b": 0.9}), (3, {"a": 10, "b": 100})],
    ids=["microseconds", "hardly any steps"],
)
def test_what_hardly_matters_is_not_called_slow(steps: int, paces: dict[str, float]) -> None:
    assert World(A, B).windows(10, steps=steps, **paces) == []


def test_stages_are_not_compared_with_each_other() -> None:
    assert World(A, B, ALONE).windows(10, a=10, b=10, alone=90) == []


def test_waiting_for_others_is_not_work() -> None:
    figures = step_pb2.RankFigures(
        prefill=step_pb2.PhaseFigures(steps=2, busy_seconds=1.0),
        decode=step_pb2.PhaseFigures(steps=10, busy_seconds=2.0),
        collective_seconds=2.5,
        receive_seconds=7.0,
    )
    assert Work.of(figures) == Work(12, 0.5)
