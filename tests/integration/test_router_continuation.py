"""A stream outlasts its replicas: whatever happens to them, the client reads exactly the undisturbed answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from argosy.internal.v1 import replica_pb2
from cluster import rpc
from cluster.errors import Reason
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.router_world import MODEL, Reply, World, request, router_world, run_async

pytestmark = pytest.mark.model

VOCABULARY = range(1000, 20000)


def replica(**options: Any) -> FakeReplica:
    return FakeReplica(hashed_tokens(VOCABULARY), **{"step_seconds": 0.005, **options})


def busy(world: World) -> FakeReplica:
    """The replica that serves the only stream."""
    return next(replica for replica in world.replicas if replica.num_streams)


async def freeze(replica: FakeReplica) -> None:
    replica.is_frozen = True


async def give_up(replica: FakeReplica) -> None:
    replica.give_up()


async def rebuild(replica: FakeReplica) -> None:
    """A new epoch at the same address; the old one goes on sending."""
    replica.epoch += 1


FAULTS: dict[str, Callable[[FakeReplica], Awaitable[None]]] = {
    "killed": FakeReplica.kill,
    "frozen": freeze,
    "gives-up": give_up,
    "rebuilt": rebuild,
}


def disturb(
    world: World, running: asyncio.Task[Reply], at_token: int, fault: Callable[[FakeReplica], Awaitable[None]]
) -> Any:
    """Inject a fault at whichever replica serves, once it has emitted `at_token` tokens."""

    async def wait_and_strike() -> None:
        await world.until(lambda: running.done() or any(r.most_emitted >= at_token for r in world.replicas))
        await fault(busy(world))

    return wait_and_strike()


@pytest.mark.parametrize("fault", FAULTS)
@run_async
async def test_the_answer_is_the_undisturbed_one(smollm2_dir: Path, fault: str) -> None:
    ask = request(max_tokens=150, num_choices=2, sampling={"seed": 5}, stop={"strings": ["never said"]})
    async with router_world(smollm2_dir, replica(), replica()) as world:
        running = asyncio.create_task(world.generate(ask))
        await disturb(world, running, 50, FAULTS[fault])
        reply = await running
        later = [spec for r in world.replicas for spec in r.submits if spec.choices[0].emitted_token_ids]
        assert len(later) == 1, "it moved once, and went on from where it was"
        assert all(len(choice.emitted_token_ids) >= 50 for choice in later[0].choices)
        assert world.prometheus("argosy_router_continuations_total", model=MODEL) == 1
    async with router_world(smollm2_dir, replica()) as world:
        reference = await world.generate(ask)
    for choice in range(2):
        assert reply.token_ids(choice) == reference.token_ids(choice)
        assert reply.text(choice) == reference.text(choice)
    assert [delta.sequence for delta in reply.deltas] == list(range(1, len(reply.deltas) + 1))
    assert reply.finished.usage == reference.finished.usage


@run_async
async def test_a_replica_that_beats_but_makes_no_step_is_left(
    smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.router.replica.DEFAULT_STALL_SECONDS", 1.0)
    async with router_world(smollm2_dir, replica(), replica()) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=60)))

        async def stall(victim: FakeReplica) -> None:
            victim.is_stalled = True

        await disturb(world, running, 20, stall)
        assert len((await running).token_ids()) == 60


@run_async
async def test_finished_choices_are_not_asked_for_again(smollm2_dir: Path) -> None:
    """Of two choices the one that has ended stays as it is; only the other goes on."""
    end = 2

    def tokens(spec: replica_pb2.GenerationSpec, choice: int, index: int) -> int:
        return end if choice == 0 and index == 10 else 1000 + index

    fakes = [FakeReplica(tokens, step_seconds=0.005) for _ in range(2)]
    async with router_world(smollm2_dir, *fakes) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=80, num_choices=2)))
        await disturb(world, running, 40, FakeReplica.kill)
        reply = await running
        assert reply.token_ids(0) == [*range(1000, 1010), end]
        assert reply.token_ids(1) == list(range(1000, 1080))
        moved = next(spec for fake in fakes for spec in fake.submits if spec.choices[0].emitted_token_ids)
        assert [choice.index for choice in moved.choices] == [1]


@run_async
async def test_a_stream_moves_as_often_as_it_must(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir, *(replica() for _ in range(5))) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=200, sampling={"seed": 1})))
        for at_token in (30, 60, 90, 120):
            await disturb(world, running, at_token, FakeReplica.kill)
            await world.until(lambda: any(r.num_streams for r in world.replicas if r.is_alive))
        reply = await running
        assert len(reply.token_ids()) == 200
        reference = await world.generate(request(max_tokens=200, sampling={"seed": 1}))
        assert reply.token_ids() == reference.token_ids()
        assert world.ledger.prompt_tokens == 2, "each prompt once, however often it moved"


@run_async
async def test_many_streams_move_at_once(smollm2_dir: Path) -> None:
    asks = [request(prompt=f"Prompt {i}", max_tokens=60, sampling={"seed": i}) for i in range(16)]
    async with router_world(smollm2_dir, replica(), replica()) as world:
        running = [asyncio.create_task(world.generate(ask)) for ask in asks]
        await world.until(lambda: all(r.most_emitted >= 20 for r in world.replicas))
        await world.replicas[0].kill()
        replies = await asyncio.gather(*running)
        for ask, reply in zip(asks, replies, strict=True):
            assert reply.token_ids() == (await world.generate(ask)).token_ids()
        assert world.ledger.open_rows == {}


@run_async
async def test_a_stream_waits_for_its_replica_to_be_rebuilt(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir, replica()) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=60, sampling={"seed": 3})))
        await disturb(world, running, 20, FakeReplica.kill)
        await asyncio.sleep(0.5)
        assert not running.done()
        heir = replica(model=MODEL, replica_id=world.replicas[0].replica_id, epoch=2)
        await heir.start()
        world.directory.replicas = [heir]
        reply = await running
        assert reply.token_ids() == (await world.generate(request(max_tokens=60, sampling={"seed": 3}))).token_ids()
        await heir.kill()


@run_async
async def test_with_no_replica_left_the_client_is_told_by_its_deadline(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir, replica()) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=400), timeout_seconds=3.0))
        await disturb(world, running, 20, FakeReplica.kill)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running
        error = rpc.to_service_error(caught.value)
        assert error.reason is Reason.REPLICA_LOST
        assert error.retry_after == 1.0
        assert world.ledger.open_rows == {}


@run_async
async def test_a_request_that_no_replica_survives_ends(smollm2_dir: Path) -> None:
    """One that every replica gives up without a token must not go round for ever."""
    fakes = [replica(prefill_steps=10**6) for _ in range(2)]
    async with router_world(smollm2_dir, *fakes) as world:
        running = asyncio.create_task(world.generate(request()))
        while not running.done():
            for fake in fakes:
                fake.give_up("poison")
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running
        assert rpc.to_service_error(caught.value).reason is Reason.REPLICA_LOST
        assert 2 <= sum(len(fake.submits) for fake in fakes) <= 5


@run_async
async def test_a_refusal_is_not_tried_elsewhere(smollm2_dir: Path) -> None:
    fakes = [replica(refuses=True) for _ in range(2)]
    async with router_world(smollm2_dir, *fakes) as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.generate(request())
        assert rpc.to_service_error(caught.value).reason is Reason.REFUSED
        assert sum(len(fake.submits) for fake in fakes) == 1


@run_async
async def test_the_directory_may_go_away(smollm2_dir: Path) -> None:
    """Streams run on and new ones are served while the controller is dead, and its return is noticed."""
    async with router_world(smollm2_dir, replica()) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=100)))
        await world.until(lambda: world.replicas[0].num_streams == 1)
        address = world.directory.address
        await world.directory.stop()
        assert len((await running).token_ids()) == 100
        assert len((await world.generate(request(max_tokens=5))).token_ids()) == 5
        newcomer = replica(model=MODEL, replica_id=f"{MODEL}/9")
        await newcomer.start()
        world.directory.replicas.append(newcomer)
        await world.directory.start(address)
        await world.until(lambda: newcomer.num_routers == 1)
        await newcomer.kill()


@run_async
async def test_a_replica_that_is_no_longer_listed_finishes_what_it_has(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir, replica(), replica()) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=100)))
        await world.until(lambda: any(r.num_streams for r in world.replicas))
        leaving = busy(world)
        world.directory.replicas.remove(leaving)
        await asyncio.sleep(0.15)
        assert len((await world.generate(request(max_tokens=5))).token_ids()) == 5
        assert len((await running).token_ids()) == 100
        assert len(leaving.submits) == 1
        await world.until(lambda: leaving.num_routers == 0)


@run_async
async def test_a_prefix_brings_a_conversation_back_to_its_replica(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir, *(replica() for _ in range(4))) as world:
        for turn in range(1, 6):
            await world.generate(request(token_ids={"ids": list(range(3, 3 + 200 * turn))}, max_tokens=2))
        assert sorted(len(fake.submits) for fake in world.replicas) == [0, 0, 0, 5]
