"""A rollout against scripted processes: what is planned, in which order it is done, and what a failure takes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from argosy.internal.v1 import control_pb2
from cluster.config import parse_config
from cluster.control.applying import Applying, with_models_of
from cluster.control.plan import wanted_replicas
from cluster.control.rollout import Action, reverse, steps, wanted_after
from cluster.control.topology import Node
from cluster.errors import Reason, ServiceError
from tests.unit.test_controller import READY, SHAPE, World

RUNNING, DONE, TAKEN_BACK = (
    control_pb2.APPLY_STATE_RUNNING,
    control_pb2.APPLY_STATE_DONE,
    control_pb2.APPLY_STATE_TAKEN_BACK,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("m", "n"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def model(name: str = "m", **section: Any) -> dict[str, Any]:
    return {"name": name, "tensor_parallel": 2, "engine": {"allow_untested_gpu": True}, **section}


def planned(store: Path, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    first, second = (parse_config({"model_store": str(store), "models": models}) for models in (before, after))
    running = {replica.replica_id: replica for replica in wanted_replicas(first)}
    todo = steps(running, wanted_after(second, running))
    return [(step.action.value, step.replica_id, step.difference) for step in todo]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([model()], [model()], []),
        ([model(device="cpu", context_length=64)], [model()], []),
        ([model()], [model(replicas=3)], [("start", "m/1", ""), ("start", "m/2", "")]),
        ([model(replicas=3)], [model(replicas=1)], [("stop", "m/2", ""), ("stop", "m/1", "")]),
        ([model()], [model(tensor_parallel=1)], [("replace", "m/0", "tensor_parallel 2 -> 1")]),
        (
            [model(replicas=2)],
            [model(replicas=1, engine={"max_sequences": 8, "allow_untested_gpu": True}), model("n")],
            [("start", "n/0", ""), ("replace", "m/0", "engine.max_sequences 64 -> 8"), ("stop", "m/1", "")],
        ),
    ],
)
def test_steps_name_what_differs_and_start_before_they_stop(
    store: Path, before: list[dict[str, Any]], after: list[dict[str, Any]], expected: list[tuple[str, str, str]]
) -> None:
    assert planned(store, before, after) == expected


def test_a_step_and_its_reverse_leave_things_as_they_were(store: Path) -> None:
    config = parse_config({"model_store": str(store), "models": [model(replicas=1)]})
    (replica,) = wanted_replicas(config)
    for step in steps({}, {replica.replica_id: replica}) + steps({replica.replica_id: replica}, {}):
        back = reverse(step)
        assert (back.before, back.after) == (step.after, step.before)
        assert {step.action, back.action} == {Action.START, Action.STOP}


async def forget(configuration: str) -> None:
    raise AssertionError("nothing was applied")


class Applied:
    """A region of scripted processes that become ready at once, and what one `Apply` did to it."""

    def __init__(
        self, store: Path, *, spoiled: Callable[[str, int], bool] = lambda name, epoch: False, **section: Any
    ) -> None:
        self.world = World(store, **section)
        self.store = store
        self.spoiled = spoiled
        self.applying = Applying(self.world.config, self.world.controller, self.world.clock, self.remember)
        self.events: list[control_pb2.ApplyResponse] = []
        self.replicas = self.most_missing = 0
        self.remembered: list[str] = []
        self.free: list[Node] | None = None
        """What is free once the first replicas run; None: as much as before."""

    async def remember(self, configuration: str) -> None:
        self.remembered.append(configuration)

    async def settle(self, seconds: float = 0.1) -> None:
        """One round, in which whatever was started comes up, or does not."""
        await self.world.rounds(1, seconds)
        backend = self.world.backend
        for name, epoch in list(backend.alive):
            if not self.spoiled(name, epoch):
                backend.put(name, epoch, READY)
        self.most_missing = max(self.most_missing, self.replicas - len(self.world.directory))

    async def run(self, *models: dict[str, Any]) -> None:
        world = self.world
        await world.controller.adopt()
        while len(world.directory) < len(world.controller.wanted):
            await self.settle()
        self.replicas, self.most_missing = len(world.directory), 0
        world.backend.nodes = self.free if self.free is not None else world.backend.nodes
        text = json.dumps({"model_store": str(self.store), "models": models})

        async def listen() -> None:
            async for event in self.applying.apply(control_pb2.ApplyRequest(configuration=text)):
                self.events.append(event)

        listening = asyncio.create_task(listen())
        while not listening.done():
            await self.settle(0.5)
        await listening
        for _ in range(5):
            await self.settle()

    @property
    def states(self) -> list[tuple[int, int]]:
        return [(event.progress.step, event.progress.state) for event in self.events if event.HasField("progress")]

    @property
    def alive(self) -> dict[str, int]:
        return dict(sorted(self.world.backend.alive))

    def ranks_of(self, name: str) -> int:
        return len(next(status.ranks for status in self.world.statuses if status.replica_id == name))


def test_replicas_are_replaced_one_after_the_other(store: Path) -> None:
    applied = Applied(store, replicas=3)
    asyncio.run(applied.run(model(replicas=3, tensor_parallel=1)))
    assert applied.states == [(step, state) for step in range(3) for state in (RUNNING, DONE)]
    assert applied.events[-1].finished.applied
    assert applied.most_missing == 1
    assert applied.alive == {"m/0": 2, "m/1": 2, "m/2": 2}
    assert [applied.ranks_of(f"m/{index}") for index in range(3)] == [1, 1, 1]
    assert all(graceful for _, _, graceful in applied.world.backend.stopped)


def test_a_model_is_added_and_another_one_removed(store: Path) -> None:
    applied = Applied(store, replicas=2)
    asyncio.run(applied.run(model("n")))
    assert applied.alive == {"n/0": 1}
    (remembered,) = applied.remembered
    assert [section.name for section in with_models_of(applied.world.config, remembered).models] == ["n"]
    assert [wanted.name for wanted in applied.world.view.directory.models] == ["n"]
    assert [status.replica_id for status in applied.world.statuses] == ["n/0"]


def test_what_fails_at_the_second_replica_is_taken_back_at_the_first_too(store: Path) -> None:
    def spoiled(name: str, epoch: int) -> bool:
        return (name, epoch) == ("m/1", 2)

    applied = Applied(store, spoiled=spoiled, replicas=2)
    original = applied.world.backend.status

    async def status(replica_id: Any, epoch: Any) -> control_pb2.ReplicaStatus:
        told = await original(replica_id, epoch)
        if spoiled(replica_id, epoch):
            told.state, told.reason = control_pb2.REPLICA_STATE_FAILED, "rank 0 ran out of memory"
        return told

    applied.world.backend.status = status
    asyncio.run(applied.run(model(replicas=2, tensor_parallel=1)))
    assert applied.states == [(0, RUNNING), (0, DONE), (1, RUNNING), (1, TAKEN_BACK), (0, TAKEN_BACK)]
    finished = applied.events[-1].finished
    assert not finished.applied
    assert "m/1" in finished.reason
    assert "out of memory" in finished.reason
    assert applied.remembered == []
    assert [applied.ranks_of(f"m/{index}") for index in range(2)] == [2, 2]
    assert all(state.state == READY for state in applied.world.statuses)
    assert {wanted.section.tensor_parallel for wanted in applied.world.controller.wanted.values()} == {2}


def test_replicas_that_find_no_room_are_not_wanted_for_ever(store: Path) -> None:
    applied = Applied(store)
    applied.free = [Node("n", "10.0.0.1", 2, 0, 8)]
    asyncio.run(applied.run(model(replicas=3)))
    finished = applied.events[-1].finished
    assert not finished.applied
    assert "free:" in finished.reason
    assert applied.alive == {"m/0": 1}
    assert [status.replica_id for status in applied.world.statuses] == ["m/0"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        ('{"models": [{"name": "m", "replicsa": 2}]}', "replicsa"),
        ('{"region": "elsewhere", "models": [{"name": "m"}]}', "this is 'local'"),
        ('{"models": [{"name": "absent"}], "model_store": "STORE"}', "argosy pull absent"),
        ('{"models": [{"name": "m", "pipeline_parallel": 9}], "model_store": "STORE"}', "impossible"),
    ],
)
def test_a_configuration_that_cannot_be_used_changes_nothing(store: Path, text: str, words: str) -> None:
    async def scenario() -> None:
        world = World(store)
        applying = Applying(world.config, world.controller, world.clock, forget)
        request = control_pb2.ApplyRequest(configuration=text.replace("STORE", str(store)))
        before = world.controller.wanted
        with pytest.raises(ServiceError) as refused:
            await anext(applying.apply(request))
        assert refused.value.reason is Reason.INVALID_FIELD
        assert words in refused.value.violations[0].description
        assert world.controller.wanted == before

    asyncio.run(scenario())


def test_one_rollout_at_a_time_and_a_plan_at_any_time(store: Path) -> None:
    async def scenario() -> None:
        world = World(store)
        applying = Applying(world.config, world.controller, world.clock, forget)
        text = json.dumps({"model_store": str(store), "models": [model(replicas=2)]})
        first = applying.apply(control_pb2.ApplyRequest(configuration=text))
        assert (await anext(first)).plan.steps[0].replica_id == "m/1"
        assert (await anext(first)).progress.state == RUNNING
        with pytest.raises(ServiceError) as refused:
            await anext(applying.apply(control_pb2.ApplyRequest(configuration=text)))
        assert refused.value.reason is Reason.DUPLICATE
        only = applying.apply(control_pb2.ApplyRequest(configuration=text, plan_only=True))
        assert [event.WhichOneof("event") async for event in only] == ["plan"]

    asyncio.run(scenario())
