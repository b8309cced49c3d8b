"""T30: many requests while replicas die and clients leave, cancel and resume; the books agree to the token."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from argosy.client.exchange import Exchange, Failure, RetryPolicy
from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from cluster.clock import SystemClock
from cluster.errors import ServiceError
from cluster.ids import RequestId
from cluster.ledger.database import SqliteDatabase
from cluster.ledger.ledger import LedgerOptions, StoredLedger, StoredRow
from cluster.ledger.records import Reservation
from tests.support.fake_replica import FakeDirectory, FakeReplica, hashed_tokens
from tests.support.fault_world import report
from tests.support.router_world import MODEL, Reply, request, run_async
from tests.support.routers import inner_router, router_config, rows_of

pytestmark = pytest.mark.model

TOKENS = hashed_tokens(range(1000, 20000))
MARK_LEAD = LedgerOptions("", Path()).ahead_tokens
LOST = Failure(grpc.StatusCode.UNAVAILABLE, "the client's network")


class CountedRow:
    """A row that counts what was accepted into its stream, apart from the books."""

    def __init__(self, row: StoredRow, request_id: str, accepted: dict[str, int], received: int) -> None:
        self._row = row
        self._id = request_id
        self._accepted = accepted
        self._tokens = received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)

    def accept(self, tokens: int) -> Any:
        self._tokens += tokens
        written_ahead = self._row.accept(tokens)
        if written_ahead is None:
            self._count(self._tokens)
            return None

        async def mark(covered: int) -> None:
            try:
                await written_ahead
            except ServiceError:
                raise  # the row was taken over: these tokens go nowhere
            except asyncio.CancelledError:
                self._count(covered)
                raise
            self._count(covered)

        return mark(self._tokens)

    def _count(self, tokens: int) -> None:
        self._accepted[self._id] = max(self._accepted.get(self._id, 0), tokens)


class CountedLedger(StoredLedger):
    """The ledger of production, whose rows count a second time."""

    def __init__(self, *arguments: Any, accepted: dict[str, int]) -> None:
        super().__init__(*arguments)
        self._counted = accepted

    async def open(self, reservation: Reservation) -> Any:
        return CountedRow(await super().open(reservation), reservation.request_id, self._counted, 0)

    async def resume(self, reservation: Reservation, received: int, generation: int, begun_in: str) -> Any:
        row = await super().resume(reservation, received, generation, begun_in)
        return CountedRow(row, reservation.request_id, self._counted, received)


@dataclass
class Region:
    """Two routers over one ledger, three fake replicas, and what was accepted by request."""

    addresses: list[str]
    replicas: list[FakeReplica]
    books: Path
    accepted: dict[str, int] = field(default_factory=dict)


@asynccontextmanager
async def region(checkpoint: Path, tmp_path: Path) -> AsyncIterator[Region]:
    async with AsyncExitStack() as stack:
        fakes = [
            FakeReplica(TOKENS, model=MODEL, replica_id=f"{MODEL}/{number}", step_seconds=0.01) for number in range(3)
        ]
        for fake in fakes:
            await fake.start()
            stack.push_async_callback(fake.kill)
        directory = FakeDirectory(*fakes)
        config = router_config(checkpoint, await directory.start(), tmp_path / "ledger.db", max_streams=4096)
        config["router"]["resume_key"] = str(tmp_path / "resume.key")
        stack.push_async_callback(directory.stop)
        world = Region([], fakes, tmp_path / "ledger.db")
        # One for both: what is tested is who counts what, not how the store is shared.
        options = LedgerOptions("router_0", tmp_path, 10.0)
        connect = functools.partial(SqliteDatabase, world.books)
        ledger = CountedLedger(connect, SystemClock(), options, accepted=world.accepted)
        await ledger.start()
        stack.push_async_callback(ledger.close)
        for _ in range(2):
            router = await stack.enter_async_context(inner_router(config, ledger=ledger))
            world.addresses.append(router.address)
        yield world


async def strike(world: Region, rng: random.Random) -> None:
    """Faults without end, each healed before the next."""
    while True:
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        victim = rng.choice(world.replicas)
        fault = rng.choice(("kill", "give up", "rebuild"))
        if fault == "kill":
            await victim.kill()
            await asyncio.sleep(0.1)
            victim.epoch += 1
            await victim.start()
        elif fault == "give up":
            victim.give_up()
        else:
            victim.epoch += 1


@dataclass
class Client:
    """One request's whole life, at a client whose network breaks."""

    ask: api.GenerateRequest
    breaks: list[int]
    """Deltas after which its stream breaks; it resumes at the other router."""
    leaves: bool
    """It does not come back after the last break."""
    reply: Reply = field(default_factory=Reply)

    async def run(self, stubs: list[Any], rng: random.Random) -> None:
        exchange = Exchange(self.ask, len(stubs), 1e9, RetryPolicy(), rng, rng.randrange(len(stubs)))
        breaks = [*self.breaks]
        while True:
            call = stubs[exchange.router].Generate(exchange.next_request(), timeout=120)
            try:
                async for event in call:
                    if exchange.take(event):
                        self.reply.add(event)
                    if breaks and len(self.reply.deltas) >= breaks[0]:
                        break
                else:
                    return
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(exchange.failed(Failure.of(error), 0.0))
                continue
            finally:
                call.cancel()
            breaks.pop(0)
            if self.leaves and not breaks:
                return
            exchange.failed(LOST, 0.0)


def clients(count: int, rng: random.Random) -> list[Client]:
    made = []
    for number in range(count):
        ask = request(prompt=f"{number}", max_tokens=rng.randint(1, 80), num_choices=1 + number % 2)
        ask.sampling.seed = number
        breaks = sorted(rng.sample(range(1, 60), rng.choice((0, 0, 1, 1, 3))))
        made.append(Client(ask, breaks, leaves=bool(breaks) and rng.random() < 0.4))
    return made


@pytest.mark.parametrize(
    "count", [100, pytest.param(1000, marks=[pytest.mark.faults_long, pytest.mark.timeout(900)])], ids=str
)
@run_async
async def test_t30_ledger_streams_and_clients_agree(smollm2_dir: Path, tmp_path: Path, count: int) -> None:
    rng = random.Random(count)
    everybody = clients(count, rng)
    async with region(smollm2_dir, tmp_path) as world, AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(rpc.channel(a, link=rpc.Link.PUBLIC)) for a in world.addresses]
        stubs: list[Any] = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
        striking = asyncio.create_task(strike(world, rng))
        at_once = asyncio.Semaphore(100)

        async def run(client: Client) -> None:
            async with at_once:
                await client.run(stubs, rng)

        await asyncio.gather(*map(run, everybody))
        striking.cancel()
        await asyncio.gather(striking, return_exceptions=True)
        books = await settled(world.books)
    check(everybody, world, books)
    resumed = sum(row[3] > 0 for row in books.values())
    moved = sum(row[4] > row[3] + 1 for row in books.values())
    assert resumed > count / 8
    assert moved > count / 20, "the faults strike"
    report(f"T30, {count} requests", count, 0)


async def settled(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every row, once all are settled: ending, prompt, completion, generation, attempts."""
    columns = "request_id, ending, prompt_tokens, completion_tokens, generation, attempts"
    async with asyncio.timeout(30):
        while True:
            rows = await rows_of(path, columns)
            if all(row[1] for row in rows):
                return {row[0]: row[1:] for row in rows}
            await asyncio.sleep(0.05)


def check(everybody: list[Client], world: Region, books: dict[str, tuple[Any, ...]]) -> None:
    """No token is lost, repeated, foreign, unbilled or billed twice."""
    # The request as its replicas got it: what their tokens depend on.
    specs = {spec.request_id: spec for replica in world.replicas for spec in replica.submits}
    assert len(books) == len(everybody), "one row a request, however often it was resumed"
    for client in everybody:
        reply, ask = client.reply, client.ask
        request_id = RequestId(reply.started.request_id)
        ending, prompt, completion, generation, _ = books[request_id]
        received = 0
        for choice in range(ask.num_choices):
            got = reply.token_ids(choice)
            received += len(got)
            assert not got or got == [TOKENS(specs[request_id], choice, index) for index in range(len(got))]
        assert [delta.sequence for delta in reply.deltas] == list(range(1, len(reply.deltas) + 1))
        # Of a request that was taken over from a router which still ran, and then left, only the marks are known.
        lead = MARK_LEAD if generation and ending != "complete" else 0
        accepted = world.accepted.get(request_id, 0)
        assert accepted <= completion <= accepted + lead, "what the books say is what streams accepted"
        assert prompt == (reply.started.prompt_tokens if completion else 0)
        if reply.finished.choices:
            assert (ending, completion) == ("complete", received)
            assert received == ask.num_choices * ask.max_tokens
        else:
            assert client.leaves
            assert completion >= received
