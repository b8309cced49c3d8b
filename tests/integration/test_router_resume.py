"""A client that lost its stream goes on at another router: what is missing comes, and the books have one row."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from argosy.client import AsyncClient
from argosy.client.exchange import Exchange, RetryPolicy
from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from cluster.errors import Reason
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.router_world import Reply, request, run_async
from tests.support.routers import region_of_routers, rows_of

pytestmark = pytest.mark.model

VOCABULARY = range(1000, 20000)
ASK = request(max_tokens=60, num_choices=2, sampling={"seed": 5}, stop={"strings": ["never said"]})


def replica(**options: Any) -> FakeReplica:
    return FakeReplica(hashed_tokens(VOCABULARY), **{"step_seconds": 0.005, **options})


async def read(address: str, ask: api.GenerateRequest, most_deltas: int = 10**9) -> Reply:
    """The events of a call, cut off after so many deltas."""
    reply = Reply()
    async with rpc.channel(address, link=rpc.Link.PUBLIC) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(ask, timeout=60)
        async for event in call:
            reply.add(event)
            if len(reply.deltas) == most_deltas:
                call.cancel()
                break
    return reply


def resumption(ask: api.GenerateRequest, *parts: Reply, last: int = 10**9) -> api.GenerateRequest:
    """What a client that got these parts asks next; deltas after `last` were lost."""
    exchange = Exchange(ask, 1, 1e9, RetryPolicy(), random.Random(0))
    for part in parts:
        exchange.take(api.GenerateResponse(started=part.started))
        for delta in part.deltas[:last]:
            exchange.take(api.GenerateResponse(delta=delta))
    return exchange.next_request()


async def refused(address: str, ask: api.GenerateRequest) -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(address, ask)
    return rpc.to_service_error(caught.value).reason


@pytest.mark.parametrize("cut", [0, 1, 17, 90])
@run_async
async def test_an_answer_goes_on_where_it_was_cut(smollm2_dir: Path, tmp_path: Path, cut: int) -> None:
    """At another router, while the first one may not have noticed yet that its client is gone."""
    async with region_of_routers(smollm2_dir, tmp_path, replica()) as (first, second):
        whole = await read(first.address, ASK)
        head = await read(first.address, ASK, cut or 1)
        tail = await read(second.address, resumption(ASK, head, last=cut))
        assert tail.started.request_id == head.started.request_id
        kept = head.deltas[:cut]
        sequences = [delta.sequence for delta in [*kept, *tail.deltas]]
        assert sequences == list(range(1, len(sequences) + 1))
        assert tail.finished.last_sequence == sequences[-1]
        for choice in range(2):
            joined = Reply(deltas=[*kept, *tail.deltas])
            assert joined.token_ids(choice) == whole.token_ids(choice)
            assert joined.text(choice) == whole.text(choice)
        assert tail.finished.choices == whole.finished.choices
        assert tail.finished.usage.completion_tokens == 120
        books = tmp_path / "ledger.db"
        prompt = whole.finished.usage.prompt_tokens
        wanted = [("complete", prompt, 120, 0), ("complete", prompt, 120, 1)]
        async with asyncio.timeout(10):
            while await rows_of(books, "ending, prompt_tokens, completion_tokens, generation") != wanted:
                await asyncio.sleep(0.05)


@run_async
async def test_an_answer_whose_end_alone_was_lost_is_not_computed_again(smollm2_dir: Path, tmp_path: Path) -> None:
    fake = replica()
    async with region_of_routers(smollm2_dir, tmp_path, fake) as (first, second):
        whole = await read(first.address, ASK)
        sent = len(fake.submits)
        tail = await read(second.address, resumption(ASK, whole))
        assert not tail.deltas
        assert tail.finished.choices == whole.finished.choices
        assert tail.finished.usage.completion_tokens == 120
        assert len(fake.submits) == sent
        assert await rows_of(tmp_path / "ledger.db", "ending, completion_tokens") == [("complete", 120)]


def forgeries(ask: api.GenerateRequest) -> dict[str, api.GenerateRequest]:
    """Each differs in one thing from a request that would be resumed."""
    forged: dict[str, api.GenerateRequest] = {}

    def forge(name: str) -> api.GenerateRequest:
        forged[name] = api.GenerateRequest()
        forged[name].CopyFrom(ask)
        return forged[name]

    token, checkpoint = bytearray(ask.resume.token), bytearray(ask.resume.checkpoint)
    token[-1] ^= 1
    checkpoint[0] ^= 1
    forge("token").resume.token = bytes(token)
    forge("no token").resume.token = b""
    forge("checkpoint").resume.checkpoint = bytes(checkpoint)
    forge("sequence").resume.last_sequence += 1
    forge("nothing proved").resume.last_sequence = 0
    forge("more tokens").resume.received[0].token_ids.append(1000)
    forge("other tokens").resume.received[0].token_ids[0] += 1
    forge("other choice").resume.received[0].choice = 7
    forge("other prompt").prompt = "Something else"
    forge("other sampling").sampling.temperature = 0.5
    forge("other stop string").stop.strings[0] = "said"
    return forged


@run_async
async def test_what_was_never_sent_cannot_be_resumed(smollm2_dir: Path, tmp_path: Path) -> None:
    """All refusals are the same: whoever guesses learns nothing."""
    async with region_of_routers(smollm2_dir, tmp_path, replica()) as (first, second):
        head = await read(first.address, ASK, 20)
        good = resumption(ASK, head)
        for name, forged in forgeries(good).items():
            assert await refused(second.address, forged) is Reason.RESUME_REFUSED, name
        assert (await read(second.address, good)).finished.usage.completion_tokens == 120


@run_async
async def test_routers_without_a_common_key_do_not_know_each_others_streams(smollm2_dir: Path, tmp_path: Path) -> None:
    async with region_of_routers(smollm2_dir, tmp_path / "a", replica()) as (first, _):
        head = await read(first.address, ASK, 20)
    async with region_of_routers(smollm2_dir, tmp_path / "b", replica()) as (stranger, _):
        assert await refused(stranger.address, resumption(ASK, head)) is Reason.RESUME_REFUSED


@run_async
async def test_the_stream_that_was_left_ends(smollm2_dir: Path, tmp_path: Path) -> None:
    """Its router is alive and still writes to a client that has gone on elsewhere."""
    ask = request(max_tokens=300, sampling={"seed": 5})
    async with region_of_routers(smollm2_dir, tmp_path, replica(step_seconds=0.01)) as (first, second):
        part = Reply()
        asked = api.GenerateRequest()
        async with rpc.channel(first.address, link=rpc.Link.PUBLIC) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)

            async def read_on() -> None:
                async for event in stub.Generate(ask, timeout=60):
                    part.add(event)
                    if len(part.deltas) == 10:
                        asked.CopyFrom(resumption(ask, part))

            reading = asyncio.create_task(read_on())
            async with asyncio.timeout(20):
                while not asked.HasField("resume"):
                    await asyncio.sleep(0.01)
            rest = await read(second.address, asked)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await reading
            assert rpc.to_service_error(caught.value).reason in (Reason.RESERVATION_LOST, Reason.RESUMED_ELSEWHERE)
        assert len(part.token_ids()) < 200, "long before its own end"
        assert len(rest.token_ids()) == 300 - len(asked.resume.received[0].token_ids)


@run_async
async def test_draining_routers_hand_their_streams_over(smollm2_dir: Path, tmp_path: Path) -> None:
    """T15: what does not finish within the grace period goes on at another router, without the caller's doing."""
    fake = replica(step_seconds=0.01)
    async with region_of_routers(smollm2_dir, tmp_path, fake, drain_seconds=1.0) as (first, second):
        both = AsyncClient([first.address, second.address])
        both._first = 0  # all at the one that will drain
        short = [request(max_tokens=20, sampling={"seed": n}) for n in range(50)]
        long = [request(max_tokens=200, sampling={"seed": 1000 + n}) for n in range(5)]

        async def ask(one: api.GenerateRequest) -> Reply:
            reply = Reply()
            async for event in both.generate(one, timeout_seconds=60):
                reply.add(event)
            return reply

        running = [asyncio.create_task(ask(one)) for one in [*long, *short]]
        async with asyncio.timeout(20):
            while fake.num_streams < 55:
                await asyncio.sleep(0.005)
        first.stop.set()
        replies = await asyncio.gather(*running)
        await asyncio.wait_for(first.serving, 10)
        await both.close()
        for one, reply in zip([*long, *short], replies, strict=True):
            assert len(reply.token_ids()) == one.max_tokens
            assert [delta.sequence for delta in reply.deltas] == list(range(1, len(reply.deltas) + 1))
        endings = await rows_of(tmp_path / "ledger.db", "ending, completion_tokens, generation")
        assert sorted(endings) == sorted([("complete", 20, 0)] * 50 + [("complete", 200, 1)] * 5)
