"""T17: a router killed, or stopped for ever, under streams whose clients go on at another one (docs/reliability.md)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from argosy.client import AsyncClient, Client
from argosy.v1 import inference_pb2 as api
from tests.support.fake_replica import FakeDirectory, FakeReplica, hashed_tokens
from tests.support.fault_world import report
from tests.support.router_world import MODEL, Reply, request, run_async
from tests.support.routers import RouterProcess, router_config, rows_of

pytestmark = pytest.mark.model

STREAMS = 16
TOKENS = 300


@asynccontextmanager
async def two_routers(
    checkpoint: Path, tmp_path: Path, **replica: Any
) -> AsyncIterator[tuple[RouterProcess, RouterProcess]]:
    """Processes over one ledger, in front of one fake replica."""
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), model=MODEL, **{"step_seconds": 0.005, **replica})
    async with AsyncExitStack() as stack:
        await fake.start()
        stack.push_async_callback(fake.kill)
        directory = FakeDirectory(fake)
        config = router_config(checkpoint, await directory.start(), tmp_path / "ledger.db")
        stack.push_async_callback(directory.stop)
        starting = [RouterProcess.start(config, tmp_path / f"{number}.json") for number in range(2)]
        first, second = await asyncio.gather(*starting)
        for router in (first, second):
            stack.push_async_callback(router.end)
        yield first, second


async def ask(client: AsyncClient, one: api.GenerateRequest, reply: Reply) -> Reply:
    async for event in client.generate(one, timeout_seconds=120):
        reply.add(event)
    return reply


def asks() -> list[api.GenerateRequest]:
    """Greedy, seeded and unseeded, one choice and two."""
    return [
        request(prompt=f"Prompt {n}", max_tokens=TOKENS, num_choices=1 + n % 2, sampling={"seed": n} if n % 3 else {})
        for n in range(STREAMS)
    ]


async def check(replies: list[Reply], router: RouterProcess, books: Path) -> None:
    """Every answer is whole and the undisturbed one, and is billed once."""
    async with AsyncClient(router.address) as client:
        again = asks()
        for one, reply in zip(again, replies, strict=True):
            one.sampling.seed = reply.started.seed
        references = await asyncio.gather(*(ask(client, one, Reply()) for one in again))
        for one, reply, reference in zip(again, replies, references, strict=True):
            for choice in range(one.num_choices):
                assert reply.token_ids(choice) == reference.token_ids(choice)
                assert reply.text(choice) == reference.text(choice)
            assert [delta.sequence for delta in reply.deltas] == list(range(1, len(reply.deltas) + 1))
            assert reply.finished.usage.completion_tokens == reference.finished.usage.completion_tokens
    rows = {row[0]: row[1:] for row in await rows_of(books, "request_id, ending, prompt_tokens, completion_tokens")}
    assert len(rows) == 2 * STREAMS, "a request that was resumed is one row"
    for reply in replies:
        usage = reply.finished.usage
        assert rows[reply.started.request_id] == ("complete", usage.prompt_tokens, usage.completion_tokens)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@run_async
async def test_t17_clients_go_on_at_another_router(smollm2_dir: Path, tmp_path: Path, fault: signal.Signals) -> None:
    async with two_routers(smollm2_dir, tmp_path) as (first, second):
        async with AsyncClient([first.address, second.address]) as client:
            client._first = 0  # all at the one that will be lost
            replies = [Reply() for _ in range(STREAMS)]
            running = [asyncio.create_task(ask(client, one, reply)) for one, reply in zip(asks(), replies, strict=True)]
            async with asyncio.timeout(60):
                while min(len(reply.token_ids()) for reply in replies) < 50:
                    await asyncio.sleep(0.01)
            first.process.send_signal(fault)
            await asyncio.gather(*running)
        report(f"T17 router {'killed' if fault is signal.SIGKILL else 'stopped'}", STREAMS, 0)
        await check(replies, second, tmp_path / "ledger.db")


@run_async
async def test_t17_a_blocking_client_does_the_same(smollm2_dir: Path, tmp_path: Path) -> None:
    async with two_routers(smollm2_dir, tmp_path) as (first, second):
        one = request(prompt="Blocking", max_tokens=TOKENS)
        reply, has_enough = Reply(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def read() -> None:
            with Client([first.address, second.address]) as client:
                client._first = 0
                for event in client.generate(one, timeout_seconds=60):
                    reply.add(event)
                    if len(reply.deltas) == 20:
                        loop.call_soon_threadsafe(has_enough.set)

        reading = asyncio.create_task(asyncio.to_thread(read))
        await asyncio.wait_for(has_enough.wait(), 30)
        first.process.kill()
        await reading
        assert len(reply.token_ids()) == TOKENS
        (row,) = await rows_of(tmp_path / "ledger.db", "ending, completion_tokens")
        assert row == ("complete", TOKENS)
