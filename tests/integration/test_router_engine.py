"""Router and real engines together: real worker processes, one killed or stopped, and the client notices a pause."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from argosy.internal.v1 import control_pb2
from cluster.ids import ModelName, ReplicaId
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.paged_fake import answer
from tests.support.replicas import Replica, replica_spec, running_replica, tiny_directory
from tests.support.router_world import MODEL, World, request, router_world, run_async

pytestmark = pytest.mark.model


class Listing(FakeReplica):
    """A real replica's entry in the fake directory."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(hashed_tokens([1]))
        self.replica = replica

    def entry(self) -> control_pb2.DirectoryEntry:
        spec = self.replica.spec
        address = self.replica.addresses.service
        return control_pb2.DirectoryEntry(replica_id=spec.replica_id, model=MODEL, address=address, epoch=spec.epoch)


@asynccontextmanager
async def world_of_engines(checkpoint: Path, tiny: Path, count: int) -> AsyncIterator[tuple[World, list[Replica]]]:
    """A router before `count` engines whose two ranks each compute a checked fake."""
    async with AsyncExitStack() as stack:
        replicas = []
        for number in range(count):
            spec = dataclasses.replace(
                replica_spec(tiny, tp=2), replica_id=ReplicaId(f"{MODEL}/{number}"), model=ModelName(MODEL)
            )
            replicas.append(await stack.enter_async_context(running_replica(spec, "--fake", "0.02")))
        for replica in replicas:
            await replica.wait_for(control_pb2.REPLICA_STATE_READY)
        world = await stack.enter_async_context(router_world(checkpoint))
        world.directory.replicas = [Listing(replica) for replica in replicas]
        await world.until_ready(count)
        yield world, replicas


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@run_async
async def test_a_lost_rank_is_a_pause(smollm2_dir: Path, tmp_path: Path, fault: signal.Signals) -> None:
    asks = [
        request(
            token_ids={"ids": range(3 + i, 40 + 7 * i)},
            max_tokens=60,
            num_choices=1 + i % 2,
            sampling={"seed": i},
            stop={"ignore_end_of_text": True},
        )
        for i in range(8)
    ]
    async with world_of_engines(smollm2_dir, tiny_directory(tmp_path / "tiny"), 2) as (world, replicas):
        running = [asyncio.create_task(world.generate(ask)) for ask in asks]
        await asyncio.sleep(0.8)
        assert not any(task.done() for task in running)
        victim = replicas[0].workers[0]
        victim.send_signal(fault)
        replies = await asyncio.gather(*running)
        assert world.prometheus("argosy_router_continuations_total", model=MODEL) >= 1
        for ask, reply in zip(asks, replies, strict=True):
            for choice in range(ask.num_choices):
                assert reply.token_ids(choice) == answer(ask.token_ids.ids, 60, seed=ask.sampling.seed, choice=choice)
        victim.send_signal(signal.SIGKILL)
