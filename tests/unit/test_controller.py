"""The controller's loop against scripted processes and a clock that stands still; its services over real gRPC."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.clock import ManualClock
from cluster.config import parse_config
from cluster.control.backend import GRACE_SECONDS, BackendError, RunningReplica
from cluster.control.controller import Controller
from cluster.control.placement import UnplaceableError
from cluster.control.service import Control, Directory, RegionView
from cluster.control.topology import Node
from cluster.ids import Epoch, ReplicaId
from cluster.rpc import channel, listen, server

READY = control_pb2.REPLICA_STATE_READY
LOADING = control_pb2.REPLICA_STATE_LOADING
PENDING = control_pb2.REPLICA_STATE_PENDING
FAILED = control_pb2.REPLICA_STATE_FAILED
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


class ScriptedBackend:
    """Processes that exist only as entries of a dictionary; the test decides how they do."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.alive: dict[tuple[str, int], control_pb2.ReplicaStatus] = {}
        self.started: list[tuple[str, int]] = []
        self.stopped: list[tuple[str, int, bool]] = []
        self.plans = []
        self.refusal: Exception | None = None
        self.epochs: dict[str, int] = {}
        self.slow_stops: asyncio.Event | None = None
        """What runs takes until then to finish."""

    async def inventory(self) -> list[Node]:
        return self.nodes

    async def running(self) -> list[RunningReplica]:
        return [RunningReplica(ReplicaId(name), Epoch(epoch)) for name, epoch in self.alive]

    async def last_epoch(self, replica_id: ReplicaId) -> Epoch:
        return Epoch(self.epochs.get(replica_id, 0))

    async def start(self, plan, spec) -> None:
        self.plans.append(plan)
        if self.refusal:
            raise self.refusal
        assert len(spec.secret) == 32
        self.started.append((spec.replica_id, spec.epoch))
        self.put(spec.replica_id, spec.epoch, LOADING)

    def put(self, name: str, epoch: int, state: int, **fields: object) -> None:
        self.alive[name, epoch] = control_pb2.ReplicaStatus(
            replica_id=name, model="m", epoch=epoch, state=state, address=f"10.0.0.1:{7000 + epoch}", **fields
        )

    async def status(self, replica_id: ReplicaId, epoch: Epoch) -> control_pb2.ReplicaStatus:
        if (replica_id, epoch) not in self.alive:
            raise BackendError("the engine is gone")
        return self.alive[replica_id, epoch]

    async def stop(
        self, replica_id: ReplicaId, epoch: Epoch, *, graceful: bool, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        if graceful and self.slow_stops:
            await self.slow_stops.wait()
        self.alive.pop((replica_id, epoch), None)
        self.stopped.append((replica_id, epoch, graceful))


class World:
    """A controller, its backend and its clock."""

    def __init__(self, store: Path, replicas: int = 1, nodes: list[Node] | None = None, **section: object) -> None:
        model = {"name": "m", "replicas": replicas, "tensor_parallel": 2, **section}
        model["engine"] = {"allow_untested_gpu": True}
        self.config = parse_config({"model_store": str(store), "models": [model]})
        self.backend = ScriptedBackend([Node("n", "10.0.0.1", 16, 0, 8)] if nodes is None else nodes)
        self.clock = ManualClock()
        self.view = RegionView("local")
        self.controller = Controller(self.config, self.backend, self.clock, self.view)

    async def rounds(self, count: int = 2, seconds: float = 0.1) -> None:
        """Let the controller go round; tasks that it starts run in between."""
        for _ in range(count):
            self.controller.round()
            for _ in range(5):
                await asyncio.sleep(0)
            self.clock.advance(seconds)

    @property
    def statuses(self) -> list[control_pb2.ReplicaStatus]:
        return list(self.view.status.replicas)

    @property
    def directory(self) -> list[tuple[str, int]]:
        return [(entry.address, entry.epoch) for entry in self.view.directory.replicas]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def test_a_replica_comes_up_and_enters_the_directory_only_when_ready(store: Path) -> None:
    async def scenario() -> None:
        world = World(store)
        await world.controller.adopt()
        await world.rounds()
        assert world.backend.started == [("m/0", 1)]
        (loading,) = world.statuses
        assert (loading.state, loading.epoch, len(loading.ranks)) == (LOADING, 1, 2)
        assert [rank.query_heads for rank in loading.ranks] == [2, 2]
        assert world.directory == []
        world.backend.put("m/0", 1, READY)
        await world.rounds(3)
        assert world.directory == [("10.0.0.1:7001", 1)]
        assert world.statuses[0].state == READY

    asyncio.run(scenario())


def test_what_the_ranks_say_is_laid_over_what_was_planned(store: Path) -> None:
    async def scenario() -> None:
        world = World(store)
        await world.rounds()
        news = control_pb2.RankStatus(stage=0, tensor_rank=1, phase="loading", loaded_bytes=5, pid=42, node="there")
        world.backend.put("m/0", 1, LOADING, ranks=[news])
        await world.rounds(3)
        first, second = world.statuses[0].ranks
        assert (first.phase, first.node, first.end_layer) == ("starting", "10.0.0.1", 4)
        assert (second.phase, second.node, second.pid, second.end_layer) == ("loading", "there", 42, 4)

    asyncio.run(scenario())


def test_a_lost_replica_leaves_the_directory_and_returns_at_a_new_epoch(store: Path) -> None:
    async def scenario() -> None:
        world = World(store)
        await world.rounds()
        world.backend.put("m/0", 1, READY)
        await world.rounds(3)
        del world.backend.alive["m/0", 1]
        await world.rounds(3)
        assert world.directory == []
        assert (world.statuses[0].state, world.statuses[0].reason) == (FAILED, "the engine is gone")
        assert world.backend.stopped == [("m/0", 1, False)]
        await world.rounds(6)
        assert world.backend.started == [("m/0", 1), ("m/0", 2)]
        world.backend.put("m/0", 2, READY)
        await world.rounds(3)
        assert world.directory == [("10.0.0.1:7002", 2)]

    asyncio.run(scenario())


def test_a_replica_that_finds_no_room_says_so_and_gets_it_later(store: Path) -> None:
    async def scenario() -> None:
        world = World(store, nodes=[Node("n", "10.0.0.1", 2, 0, 8)])
        await world.rounds(3)
        assert world.statuses[0].state == PENDING
        assert "a CPU for the engine is missing" in world.statuses[0].reason
        assert world.backend.started == []
        world.backend.nodes = [Node("n", "10.0.0.1", 3, 0, 8)]
        await world.rounds(12)
        assert [name for name, _ in world.backend.started] == ["m/0"]

    asyncio.run(scenario())


@pytest.mark.parametrize("refusal", [BackendError("no such module"), UnplaceableError("taken"), RuntimeError("odd")])
def test_no_failure_to_start_ends_the_loop(store: Path, refusal: Exception) -> None:
    async def scenario() -> None:
        world = World(store)
        world.backend.refusal = refusal
        await world.rounds(3)
        assert str(refusal) in world.statuses[0].reason
        world.backend.refusal = None
        await world.rounds(15)
        assert len(world.backend.started) == 1

    asyncio.run(scenario())


def test_a_replica_that_had_gpus_waits_for_gpus(store: Path) -> None:
    async def scenario() -> None:
        world = World(store, nodes=[Node("n", "10.0.0.1", 16, 2, 8)])
        await world.rounds()
        assert world.backend.plans[0].device == "cuda"
        world.backend.nodes = [Node("n", "10.0.0.1", 16, 1, 8)]
        del world.backend.alive["m/0", 1]
        await world.rounds(12)
        assert len(world.backend.plans) == 1
        assert world.statuses[0].state == PENDING

    asyncio.run(scenario())


def test_a_new_controller_adopts_what_runs_and_ends_what_is_too_old(store: Path) -> None:
    async def scenario() -> None:
        world = World(store, replicas=2)
        world.backend.put("m/0", 6, READY)
        world.backend.put("m/0", 7, READY)
        world.backend.put("gone/0", 1, READY)
        world.backend.epochs = {"m/1": 3}
        await world.controller.adopt()
        await world.rounds(3)
        assert ("m/0", 6, False) in world.backend.stopped
        assert ("gone/0", 1, True) in world.backend.stopped
        assert world.backend.started == [("m/1", 4)], "epochs go on from the last one known"
        assert world.directory == [("10.0.0.1:7007", 7)]

    asyncio.run(scenario())


def test_shut_down_ends_every_replica_gracefully(store: Path) -> None:
    async def scenario() -> None:
        world = World(store, replicas=2)
        await world.rounds()
        await world.controller.shut_down()
        assert sorted(world.backend.stopped) == [("m/0", 1, True), ("m/1", 1, True)]
        assert world.backend.alive == {}
        assert world.statuses == []

    asyncio.run(scenario())


def test_watchers_get_the_directory_at_once_and_then_every_change() -> None:
    async def scenario() -> None:
        view, ended = RegionView("eu"), asyncio.Event()

        async def shut_down() -> None:
            ended.set()

        target = server()
        control_pb2_grpc.add_DirectoryServiceServicer_to_server(Directory(view), target)
        control_pb2_grpc.add_ControlServiceServicer_to_server(Control(view, shut_down), target)
        address = listen(target, "127.0.0.1:0", "controller.listen")
        await target.start()
        async with channel(address) as client:
            watch = control_pb2_grpc.DirectoryServiceStub(client).WatchReplicas(control_pb2.WatchReplicasRequest())
            first = await watch.read()
            assert (first.region, first.version, len(first.replicas)) == ("eu", 1, 0)
            status = control_pb2.ReplicaStatus(replica_id="m/0", state=READY)
            entry = control_pb2.DirectoryEntry(replica_id="m/0", address="10.0.0.1:1", epoch=1)
            view.publish([status], [entry])
            second = await watch.read()
            assert (second.version, second.replicas[0].address) == (2, "10.0.0.1:1")
            entry = control_pb2.DirectoryEntry(replica_id="m/0", address="10.0.0.1:1", epoch=1)
            entry.load.running = 3
            view.publish([status], [entry])
            third = await watch.read()
            assert (third.version, third.replicas[0].load.running) == (2, 3), "load is news, membership is a version"
            again = await watch.read()
            assert again == third, "silence would mean a lost controller"
            stub = control_pb2_grpc.ControlServiceStub(client)
            told = await stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5)
            assert [replica.replica_id for replica in told.replicas] == ["m/0"]
            await stub.Shutdown(control_pb2.ShutdownRequest(), timeout=5)
            assert ended.is_set()
            watch.cancel()
        await target.stop(None)

    asyncio.run(scenario())
