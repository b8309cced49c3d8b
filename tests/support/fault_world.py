"""A small region without Ray: a router before real engines, whose ranks are processes that tests kill, stop and starve.

The arithmetic is the paged fake's, so what every stream must get is known in advance. A healer stands in for the
controller: it ends a failed replica's processes and starts the next epoch. On leaving, what must hold after any fault
is checked (`World.assert_nothing_is_left`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from argosy.internal.v1 import control_pb2
from argosy.v1 import inference_pb2 as api
from cluster.config import TracesConfig
from cluster.ids import Epoch, ModelName, ReplicaId
from cluster.protocol import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.paged_fake import answer
from tests.support.replicas import Replica, replica_spec, running_replica, tiny_directory
from tests.support.router_world import MODEL, Reply, World, request, router_world
from tests.support.tcp_proxy import TcpProxy

PASS_SECONDS = 0.01
MAX_OVERRUN = 10.0
"""Wall-clock bounds only guard against hangs: a run may take so many times its bound."""


@dataclass
class TimedReply(Reply):
    """An answer, and the longest time without news in it."""

    longest_gap: float = 0.0
    last_news: float = 0.0

    def add(self, event: api.GenerateResponse) -> None:
        super().add(event)
        now = time.monotonic()
        if self.last_news and self.deltas:
            self.longest_gap = max(self.longest_gap, now - self.last_news)
        self.last_news = now


class Site(FakeReplica):
    """One replica over all its epochs, and its entry in the directory."""

    def __init__(self, replica_id: ReplicaId, start: Callable[[Epoch], Any], *, proxied: bool) -> None:
        super().__init__(hashed_tokens([1]))
        self.replica_id = replica_id
        self.epochs: list[int] = []
        self.current: Replica | None = None
        self.is_healing = True
        self.proxy: TcpProxy | None = None
        self._start = start
        self._proxied = proxied
        self._stack = AsyncExitStack()

    async def open(self, epoch: int) -> None:
        """Start the processes of an epoch."""
        await self.close()
        assert not self.epochs or epoch > self.epochs[-1], "epochs only grow"
        self.epochs.append(epoch)
        self.current = await self._stack.enter_async_context(self._start(Epoch(epoch)))
        if self._proxied:
            self.proxy = await self._stack.enter_async_context(TcpProxy(self.current.addresses.service))

    async def close(self) -> None:
        """End the processes of the present epoch."""
        replica, self.current = self.current, None
        await self._stack.aclose()
        if replica is not None:
            assert all(worker.poll() is not None for worker in replica.workers), "no rank outlives its epoch"

    def entry(self) -> control_pb2.DirectoryEntry:
        assert self.current is not None
        address = self.proxy.address if self.proxy else self.current.addresses.service
        return control_pb2.DirectoryEntry(
            replica_id=self.replica_id, model=MODEL, address=address, epoch=self.epochs[-1]
        )

    async def state(self) -> int:
        assert self.current is not None
        return (await self.current.status()).state


@dataclass
class FaultWorld:
    """What a test can touch."""

    world: World
    sites: list[Site]
    step_seconds: float
    asked: list[tuple[api.GenerateRequest, asyncio.Task[TimedReply]]] = field(default_factory=list)

    def ask(self, ask: api.GenerateRequest, timeout_seconds: float = 60.0) -> asyncio.Task[TimedReply]:
        """Make a call; its answer is checked by `assert_exact`."""

        async def call() -> TimedReply:
            reply = TimedReply()
            async for event in self.world.inference.Generate(ask, timeout=timeout_seconds):
                reply.add(event)
            return reply

        task = asyncio.create_task(call())
        self.asked.append((ask, task))
        return task

    @property
    def continuations(self) -> float:
        return self.world.prometheus("argosy_router_continuations_total", model=MODEL)

    async def until_tokens(self, count: int) -> None:
        """Until every stream has its first tokens and all of them together `count` a stream."""
        engines = [site.current.engine for site in self.sites if site.current]
        await self.world.until(lambda: sum(engine._engine.step for engine in engines) >= count)

    async def assert_exact(self) -> list[TimedReply]:
        """Every answer is the undisturbed one."""
        replies = await asyncio.gather(*(task for _, task in self.asked))
        for (ask, _), reply in zip(self.asked, replies, strict=True):
            for choice in range(max(1, ask.num_choices)):
                expected = answer(ask.token_ids.ids, ask.max_tokens, seed=ask.sampling.seed, choice=choice)
                assert reply.token_ids(choice) == expected
            assert reply.finished.usage.prompt_tokens == len(ask.token_ids.ids)
            assert [delta.sequence for delta in reply.deltas] == list(range(1, len(reply.deltas) + 1))
        return replies

    async def assert_nothing_is_left(self) -> None:
        """Blocks, rows and slots are free again, wherever a replica lives."""
        live = [site for site in self.sites if site.current and await site.state() == control_pb2.REPLICA_STATE_READY]
        engines = [site.current.engine._engine for site in live if site.current]
        await self.world.until(lambda: all(not engine.load().used_blocks for engine in engines))
        await self.world.until(lambda: not self.world.ledger.open_rows)
        assert self.world.prometheus("argosy_router_live_streams") == 0
        for site in self.sites:
            assert site.epochs == sorted(set(site.epochs))

    def warm_bound(self, prompt_tokens: int, prefill_seconds: float) -> float:
        """B_w: detect, compute prompt and emitted tokens again, five steps, and half a second."""
        del prompt_tokens
        return DEAD_AFTER_SECONDS + prefill_seconds + 5 * self.step_seconds + 0.5


def asks(
    count: int, rng: random.Random, max_tokens: int, longest_prompt: int = 60, **fields: Any
) -> list[api.GenerateRequest]:
    """Requests of known answers: greedy and seeded, one choice and two."""
    return [
        request(
            token_ids={"ids": [rng.randrange(900) for _ in range(rng.randint(3, longest_prompt))]},
            max_tokens=max_tokens,
            num_choices=1 + index % 2,
            sampling={"seed": index},
            stop={"ignore_end_of_text": True},
            **fields,
        )
        for index in range(count)
    ]


def report(test: str, streams: int, failed: int, gap_over_bound: float | None = None) -> None:
    """One line of the table in docs/reliability.md, if $ARGOSY_FAULT_REPORT names a file."""
    if path := os.environ.get("ARGOSY_FAULT_REPORT"):
        line = {"test": test, "streams": streams, "failed": failed, "gap_over_bound": gap_over_bound}
        with Path(path).open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def check_gap(test: str, replies: Sequence[TimedReply], bound: float) -> None:
    """Report the longest pause as a share of its bound, and refuse a hang."""
    gap = max(reply.longest_gap for reply in replies)
    report(test, len(replies), 0, round(gap / bound, 2))
    assert gap < MAX_OVERRUN * bound


@asynccontextmanager
async def fault_world(
    checkpoint: Path,
    tmp_path: Path,
    count: int = 2,
    *,
    tp: int = 2,
    pp: int = 1,
    pass_seconds: float = PASS_SECONDS,
    proxied: bool = False,
    real: bool = False,
    num_blocks: int = 512,
    router: dict[str, Any] | None = None,
    traces: dict[str, Any] | None = None,
    **engine: object,
) -> AsyncIterator[FaultWorld]:
    """`count` replicas, a router, and a healer. `real`: ranks compute the checkpoint's model, not the paged fake."""
    directory = checkpoint if real else tiny_directory(tmp_path / "tiny")
    arguments = () if real else ("--fake", str(pass_seconds))

    def site(number: int) -> Site:
        replica_id = ReplicaId(f"{MODEL}/{number}")

        def start(epoch: Epoch) -> Any:
            spec = replica_spec(directory, tp=tp, pp=pp, num_blocks=num_blocks, **engine)
            spec = dataclasses.replace(spec, replica_id=replica_id, model=ModelName(MODEL), epoch=epoch)
            spec = dataclasses.replace(spec, traces=TracesConfig.model_validate(traces or {}))
            return running_replica(spec, *arguments)

        return Site(replica_id, start, proxied=proxied)

    sites = [site(number) for number in range(count)]
    async with AsyncExitStack() as stack:
        for one in sites:
            stack.push_async_callback(one.close)
        await asyncio.gather(*(one.open(1) for one in sites))
        world = await stack.enter_async_context(router_world(checkpoint, router=router, traces=traces or {}))
        world.directory.replicas = list(sites)
        await world.until_ready(count)
        faults = FaultWorld(world, sites, step_seconds=pass_seconds)
        healer = asyncio.create_task(_heal(faults))
        try:
            yield faults
            await faults.assert_nothing_is_left()
        finally:
            healer.cancel()
            await asyncio.gather(healer, return_exceptions=True)


async def _heal(faults: FaultWorld) -> None:
    """Start the next epoch of whatever has failed, as the controller does."""
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        for site in faults.sites:
            if site.is_healing and site.current and await site.state() == control_pb2.REPLICA_STATE_FAILED:
                listed = faults.world.directory.replicas
                listed.remove(site)
                await site.open(site.epochs[-1] + 1)
                listed.append(site)
