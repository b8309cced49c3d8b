"""Orders to leave: a replica, a node or a router ends in order, and returns as told. Processes are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.control.reconcile import Drain
from cluster.control.service import Control, Directory, DrainTarget
from cluster.control.topology import Node
from cluster.errors import Reason, ServiceError
from cluster.rpc import channel, listen, server, to_service_error
from tests.unit.test_controller import LOADING, PENDING, READY, World, store

__all__ = ["store"]

DRAINING = control_pb2.REPLICA_STATE_DRAINING


async def ready_world(store: Path, nodes: list[Node] | None = None, replicas: int = 2) -> World:
    world = World(store, replicas=replicas, nodes=nodes)
    world.backend.slow_stops = asyncio.Event()
    await world.rounds()
    for number in range(replicas):
        world.backend.put(f"m/{number}", 1, READY)
    await world.rounds(3)
    assert len(world.directory) == replicas
    return world


async def followed(world: World, order: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Give an order and let the controller go round."""
    task = asyncio.create_task(order)
    await asyncio.sleep(0)
    await world.rounds(3)
    return task


def test_a_drained_replica_takes_nothing_finishes_ends_and_rests_until_called_back(store: Path) -> None:
    async def scenario() -> None:
        world = await ready_world(store)
        orders, replica = world.controller.orders, DrainTarget("replica_id", "m/0")
        drained = await followed(world, orders.drain(replica, Drain(9.0, restart=False), undo=False))
        assert [status.state for status in world.statuses] == [DRAINING, READY]
        assert world.directory == [("10.0.0.1:7001", 1)], "the other one's"
        await world.rounds(20)
        assert not drained.done(), "it still finishes what it has"
        world.backend.slow_stops.set()
        await world.rounds(4)
        assert drained.done()
        assert world.backend.stopped == [("m/0", 1, True)]
        assert (world.statuses[0].state, world.statuses[0].reason) == (PENDING, "drained, until it is called back")
        await world.rounds(40)
        assert len(world.backend.started) == 2, "it rests"
        await orders.drain(replica, Drain(0.0, restart=False), undo=True)
        await world.rounds(3)
        assert world.backend.started[-1] == ("m/0", 2)

    asyncio.run(scenario())


def test_a_replica_that_is_to_be_built_again_returns_at_a_new_epoch(store: Path) -> None:
    async def scenario() -> None:
        world = await ready_world(store)
        world.backend.slow_stops.set()
        order = world.controller.orders.drain(DrainTarget("replica_id", "m/1"), Drain(9.0, restart=True), undo=False)
        drained = await followed(world, order)
        await world.rounds(3)
        assert world.backend.started[-1] == ("m/1", 2)
        assert not drained.done(), "it is not ready yet"
        world.backend.put("m/1", 2, READY)
        await world.rounds(5)
        assert drained.done()
        await world.rounds(30)
        assert len(world.backend.started) == 3, "the order has been followed once"

    asyncio.run(scenario())


def test_a_drained_node_is_left_and_nothing_new_comes(store: Path) -> None:
    async def scenario() -> None:
        nodes = [Node("a", "10.0.0.1", 4, 0, 8), Node("b", "10.0.0.2", 3, 0, 8)]
        world = await ready_world(store, nodes, replicas=1)
        host = world.statuses[0].ranks[0].node
        other = {"10.0.0.1": "10.0.0.2", "10.0.0.2": "10.0.0.1"}[host]
        world.backend.slow_stops.set()
        order = world.controller.orders.drain(DrainTarget("node", host), Drain(9.0, restart=False), undo=False)
        drained = await followed(world, order)
        await world.rounds(4)
        assert drained.done()
        assert {rank.node.host for rank in world.backend.plans[-1].ranks} == {other}
        world.backend.nodes = [node for node in nodes if node.host == host]
        world.backend.alive.clear()
        await world.rounds(30)
        assert world.statuses[0].state in (PENDING, LOADING)
        assert "missing" in world.statuses[0].reason or "no " in world.statuses[0].reason
        await world.controller.orders.drain(DrainTarget("node", host), Drain(0.0, restart=False), undo=True)
        await world.rounds(30)
        assert {rank.node.host for rank in world.backend.plans[-1].ranks} == {host}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "known"), [("replica_id", "m/0, m/1"), ("node", "10.0.0.1"), ("router_id", "none")], ids=str
)
def test_what_is_not_there_is_refused_by_name(store: Path, kind: str, known: str) -> None:
    async def scenario() -> None:
        world = await ready_world(store)
        with pytest.raises(ServiceError) as caught:
            await world.controller.orders.drain(DrainTarget(kind, "x"), Drain(1.0, restart=False), undo=False)
        assert caught.value.reason is Reason.UNKNOWN_RESOURCE
        assert f"there are: {known}" in caught.value.public_message

    asyncio.run(scenario())


def test_over_the_wire_a_router_is_told_and_its_leaving_is_waited_for(store: Path) -> None:
    async def scenario() -> None:
        world = await ready_world(store)
        serving = server()
        control_pb2_grpc.add_DirectoryServiceServicer_to_server(Directory(world.view), serving)

        async def shut_down() -> None:
            raise AssertionError("nobody asked for that")

        control = Control(world.view, shut_down, world.controller.orders.drain)
        control_pb2_grpc.add_ControlServiceServicer_to_server(control, serving)
        address = listen(serving, "127.0.0.1:0", "controller.listen")
        await serving.start()
        async with channel(address) as there:
            directory = control_pb2_grpc.DirectoryServiceStub(there)
            watch = directory.WatchReplicas(control_pb2.WatchReplicasRequest(router_id="router_a"))
            assert not (await watch.read()).drain
            stub = control_pb2_grpc.ControlServiceStub(there)
            status = await stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5)
            assert list(status.router_ids) == ["router_a"]
            with pytest.raises(Exception) as caught:
                await stub.Drain(control_pb2.DrainRequest(), timeout=5)
            assert to_service_error(caught.value).reason is Reason.INVALID_FIELD
            drained = asyncio.ensure_future(stub.Drain(control_pb2.DrainRequest(router_id="router_a"), timeout=20))
            async with asyncio.timeout(10):
                while not (await watch.read()).drain:
                    pass
                assert not drained.done()
                watch.cancel()
                while not drained.done():
                    world.clock.advance(0.1)
                    await asyncio.sleep(0.01)
            await drained
        await serving.stop(None)

    asyncio.run(scenario())
