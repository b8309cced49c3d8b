"""Ends and limits of streams: cancels, deadlines, slow readers, many at once, overload, draining."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from cluster.errors import Reason
from cluster.router.attempt import WINDOW_TOKENS
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.router_world import MODEL, request, router_world, run_async

pytestmark = pytest.mark.model


def replica(**options: Any) -> FakeReplica:
    return FakeReplica(hashed_tokens(range(1000, 20000)), **{"step_seconds": 0.005, **options})


@pytest.mark.parametrize("prefill_steps", [1, 10**6], ids=["decoding", "prefilling"])
@run_async
async def test_a_cancelled_call_ends_at_its_replica(smollm2_dir: Path, prefill_steps: int) -> None:
    fake = replica(prefill_steps=prefill_steps)
    async with router_world(smollm2_dir, fake) as world:
        call = world.inference.Generate(request(max_tokens=4000), timeout=60)
        assert (await call.read()).WhichOneof("event") == "started"
        if prefill_steps == 1:
            assert (await call.read()).WhichOneof("event") == "delta"
        await world.until(lambda: fake.num_streams == 1)
        call.cancel()
        await world.until(lambda: fake.num_streams == 0)
        assert len(fake.cancels) == 1
        await world.until(lambda: not world.ledger.open_rows)
        assert world.ledger.settled == 1
        await world.until(lambda: world.prometheus("argosy_router_live_streams") == 0)
        assert world.prometheus("argosy_router_requests_total", model=MODEL, reason="CANCELLED") == 1


@run_async
async def test_clients_that_vanish_leave_nothing_behind(smollm2_dir: Path) -> None:
    fake = replica()
    async with router_world(smollm2_dir, fake) as world:
        async with rpc.channel(world.router, link=rpc.Link.PUBLIC) as channel:
            calls = [
                channel.unary_stream(
                    "/argosy.v1.InferenceService/Generate",
                    request_serializer=lambda message: message.SerializeToString(),
                )(request(max_tokens=4000), timeout=60)
                for _ in range(20)
            ]
            for call in calls:
                await call.read()
            await world.until(lambda: fake.num_streams == 20)
        await world.until(lambda: fake.num_streams == 0)
        await world.until(lambda: not world.ledger.open_rows)
        assert world.ledger.settled == 20


@run_async
async def test_the_deadline_ends_the_call_everywhere(smollm2_dir: Path) -> None:
    fake = replica()
    async with router_world(smollm2_dir, fake) as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.generate(request(max_tokens=4000), timeout_seconds=0.4)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < fake.submits[0].time_left.ToNanoseconds() <= 0.4e9
        await world.until(lambda: fake.num_streams == 0)
        await world.until(lambda: not world.ledger.open_rows)


@run_async
async def test_a_call_without_a_deadline_gets_the_configured_one(smollm2_dir: Path) -> None:
    fake = replica()
    async with router_world(smollm2_dir, fake, router={"default_deadline_seconds": 0.4}) as world:
        call = world.inference.Generate(request(max_tokens=4000))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert rpc.to_service_error(caught.value).reason is Reason.DEADLINE
        assert 0 < fake.submits[0].time_left.ToNanoseconds() <= 0.4e9
        await world.until(lambda: not world.ledger.open_rows)


@run_async
async def test_200_streams_at_once_are_each_what_they_are_alone(smollm2_dir: Path) -> None:
    fakes = [replica(), replica()]
    async with router_world(smollm2_dir, *fakes) as world:
        asks = [request(prompt=f"Number {i}", max_tokens=16, sampling={"seed": i}) for i in range(200)]
        replies = await asyncio.gather(*(world.generate(ask) for ask in asks))
        assert all(len(reply.token_ids()) == 16 for reply in replies)
        assert all(60 <= len(fake.submits) <= 140 for fake in fakes), "the replicas share them"
        for index in (0, 99, 199):
            assert replies[index].token_ids() == (await world.generate(asks[index])).token_ids()
        assert len({tuple(reply.token_ids()) for reply in replies}) == 200
        assert world.ledger.completion_tokens == 203 * 16
        assert world.prometheus("argosy_router_tokens_total", model=MODEL, kind="completion") == 203 * 16


@run_async
async def test_a_reader_that_stops_holds_up_nobody_else(smollm2_dir: Path) -> None:
    """Its replica pauses it once window and buffers are full; others' streams go on as before."""
    fake = replica(step_seconds=0.0005)
    async with router_world(smollm2_dir, fake) as world:
        # Its own connection with a small receive window, or the transport's flow control would be shared.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(world.router, options=options) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
            stopped = stub.Generate(request(max_tokens=4000, num_choices=16), timeout=100)
            await stopped.read()
            sent = -1
            while sent != fake.num_tokens:
                sent = fake.num_tokens
                await asyncio.sleep(0.5)
            assert sent < 16 * 4000 // 4, "it paused long before its end"
            assert fake.num_streams == 1
            for _ in range(3):
                assert len((await world.generate(request(max_tokens=50))).token_ids()) == 50
            assert fake.num_tokens == sent + 150
            stopped.cancel()
            await world.until(lambda: fake.num_streams == 0)


@run_async
async def test_no_stream_gets_more_than_its_window_ahead(smollm2_dir: Path) -> None:
    """A long answer needs credits: without them its replica would stop at the window."""
    fake = replica(step_seconds=0.0005)
    async with router_world(smollm2_dir, fake) as world:
        reply = await world.generate(request(max_tokens=4 * WINDOW_TOKENS))
        assert len(reply.token_ids()) == 4 * WINDOW_TOKENS
        assert fake.submits[0].initial_credit == WINDOW_TOKENS
        assert 6 <= fake.num_credits <= 8


@run_async
async def test_too_many_streams_are_refused_with_the_limit(smollm2_dir: Path) -> None:
    fake = replica()
    async with router_world(smollm2_dir, fake, router={"max_streams": 3}) as world:
        running = [asyncio.create_task(world.generate(request(max_tokens=100))) for _ in range(3)]
        await world.until(lambda: fake.num_streams == 3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.generate(request())
        error = rpc.to_service_error(caught.value)
        assert error.reason is Reason.OVERLOADED
        assert error.retry_after == 1.0
        assert [(quota.subject, quota.description) for quota in error.quotas] == [
            ("router", "at most 3 requests in flight")
        ]
        await asyncio.gather(*running)
        assert len((await world.generate(request(max_tokens=2))).token_ids()) == 2


@run_async
async def test_draining_finishes_what_runs_and_refuses_what_comes(smollm2_dir: Path) -> None:
    fake = replica()
    async with router_world(smollm2_dir, fake) as world:
        running = [asyncio.create_task(world.generate(request(max_tokens=120))) for _ in range(10)]
        await world.until(lambda: fake.num_streams == 10)
        world.stop.set()
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.generate(request())
        assert rpc.to_service_error(caught.value).reason is Reason.SHUTTING_DOWN
        assert [len(reply.token_ids()) for reply in await asyncio.gather(*running)] == [120] * 10
        await asyncio.wait_for(world.serving, 10)


@run_async
async def test_what_does_not_finish_in_the_grace_is_told_to_go_elsewhere(smollm2_dir: Path) -> None:
    fake = replica()
    async with router_world(smollm2_dir, fake, router={"drain_seconds": 0.3}) as world:
        running = [asyncio.create_task(world.generate(request(max_tokens=4000))) for _ in range(5)]
        await world.until(lambda: fake.num_streams == 5)
        world.stop.set()
        await asyncio.wait_for(world.serving, 10)
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError)
            error = rpc.to_service_error(outcome)
            assert error.reason is Reason.SHUTTING_DOWN
            assert error.retry_after == 1.0
        assert world.ledger.settled == 5
        assert world.ledger.open_rows == {}


@run_async
async def test_coalesced_deltas_hold_the_same_answer(smollm2_dir: Path) -> None:
    ask = request(max_tokens=60, num_choices=2, sampling={"seed": 8})
    async with router_world(smollm2_dir, replica()) as world:
        plain = await world.generate(ask)
    async with router_world(smollm2_dir, replica(), router={"coalesce_seconds": 0.05}) as world:
        merged = await world.generate(ask)
    assert len(merged.deltas) < len(plain.deltas) / 3
    for choice in range(2):
        assert merged.token_ids(choice) == plain.token_ids(choice)
        assert merged.text(choice) == plain.text(choice)
    assert len(merged.deltas[0].token_ids) < 5, "the first token is not held back"
