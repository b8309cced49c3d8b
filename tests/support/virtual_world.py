"""A region in one process on a virtual clock: production code of router and engine over a network that misbehaves.

Real are `Fleet`, `ReplicaConnection`, `LiveStream`, `ReplicaService`, `Engine`, `Scheduler` and `Stepper`; played are
time (an event loop that jumps to its next timer), the network (ordered pipes that delay, hold back and cut), the ranks
(the paged fake, which dies when told), the controller, and gRPC's deadline. Everything is drawn from one seed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from argosy.internal.v1 import control_pb2, step_pb2
from cluster.errors import Reason, ServiceError
from cluster.ids import Epoch, ModelName, RegionId, RequestId, RouterId
from cluster.launch import ReplicaSpec, WorkerSpec
from cluster.ledger.records import Ending, Reservation, Settlement
from cluster.replica.constraints import Constraints
from cluster.replica.engine import Engine
from cluster.replica.plan import SchedulerConfig
from cluster.replica.prefix_log import PrefixLog
from cluster.replica.scheduler import Scheduler
from cluster.replica.service import ReplicaService
from cluster.replica.validate import Limits
from cluster.router.continuation import LiveStream
from cluster.router.fleet import Fleet, ModelTraffic
from cluster.router.metering import MemoryLedger, MemoryRow
from cluster.router.regions import Region
from cluster.worker.stepper import Stepper
from tests.support.paged_fake import POISON_TOKEN, PagedFake, answer
from tests.support.replicas import HOST, replica_spec
from tests.support.router_stream import sampling, spec_of
from tests.support.virtual_net import LoopClock, VirtualCall, VirtualLoop

MODEL = ModelName("virtual")
HOME = Region(RegionId("virtual"), (), is_home=True)
FAULTS_SECONDS = 3.0
"""Faults happen in the first seconds; what comes after must recover."""
PATIENCE_SECONDS = 60.0
"""Deadline of the requests that must succeed."""

POISONED = ("QUARANTINED", "REPLICA_LOST", "DEADLINE", "NO_REPLICA")
"""How a request that kills ranks may end, if faults come on top."""


class VirtualRanks:
    """What an engine needs of its ranks: steps take a while, in order, and may never end."""

    def __init__(self, spec: ReplicaSpec, rng: random.Random) -> None:
        coordinates = spec.dims.coordinates(0)
        runner = PagedFake(WorkerSpec(replica=spec, coordinates=coordinates, step_channel="", host=HOST), None, 0.0)
        self._stepper = Stepper(runner, spec, coordinates)
        self._rng = rng
        self._free_at = 0.0
        self.engine: Engine | None = None
        self.is_alive = True
        self.is_stalled = False

    def send_step(self, step: int, message: bytes, predicted_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        asked = step_pb2.EngineMessage.FromString(message).step
        self._free_at = max(self._free_at, loop.time()) + self._rng.uniform(0.005, 0.03)
        loop.call_at(self._free_at, self._finish, asked)

    def _finish(self, asked: step_pb2.StepInput) -> None:
        if not self.is_alive or self.is_stalled:
            return
        if POISON_TOKEN.to_bytes(4, "little") in asked.token_ids:
            self.lose()
            return
        assert self.engine is not None
        output = self._stepper.step(asked)
        assert output is not None
        output.seconds = 0.02
        self.engine.step_done(output)

    def lose(self) -> None:
        """A rank dies, and the engine hears of it."""
        if self.is_alive:
            self.is_alive = False
            assert self.engine is not None
            asyncio.get_running_loop().call_later(0.05, self.engine.ranks_lost, "a rank died")

    def close(self) -> None:
        self.is_alive = False


class Host:
    """One replica over its epochs."""

    def __init__(self, number: int, spec: ReplicaSpec, rng: random.Random) -> None:
        self.replica_id = f"{MODEL}/{number}"
        self.spec = dataclasses.replace(spec, replica_id=self.replica_id, model=MODEL)
        self.rng = rng
        self.epoch = 0
        self.is_up = False
        self.calls: list[VirtualCall] = []
        self.loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """The next epoch, with empty memory."""
        self.epoch += 1
        spec = dataclasses.replace(self.spec, epoch=Epoch(self.epoch))
        engine = spec.engine
        self.ranks = VirtualRanks(spec, self.rng)
        prefixes = PrefixLog()
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_batch_tokens=engine.max_batch_tokens,
                max_sequences=engine.max_sequences,
                block_size=engine.block_size,
                num_blocks=spec.num_blocks,
                context_length=spec.context_length,
                num_lanes=1,
                prefix_cache=True,
                model_revision="virtual",
            ),
            block_observer=prefixes,
        )
        self.engine = Engine(
            epoch=spec.epoch,
            num_stages=1,
            limits=Limits(vocab_size=1000, context_length=spec.context_length),
            scheduler=self.scheduler,
            constraints=Constraints(None),  # type: ignore[arg-type]
            prefixes=prefixes,
            ranks=self.ranks,
            clock=LoopClock(),
        )
        self.ranks.engine = self.engine
        self.service = ReplicaService(self.engine, spec)
        self.engine.ranks_ready()
        self.loops.append(asyncio.create_task(self.engine.run()))
        self.is_up = True

    def crash(self) -> None:
        """Engine and ranks vanish; connections are reset."""
        self.is_up = False
        self.ranks.is_alive = False
        for call in self.calls:
            call.cut()

    def entry(self) -> control_pb2.DirectoryEntry:
        return control_pb2.DirectoryEntry(
            replica_id=self.replica_id, model=MODEL, address=self.replica_id, epoch=self.epoch
        )

    @property
    def is_ready(self) -> bool:
        return self.is_up and self.engine.state == control_pb2.REPLICA_STATE_READY


@dataclass
class Outcome:
    """How one request went."""

    prompt: list[int]
    max_tokens: int
    seed: int
    deadline: float
    is_poison: bool = False
    is_cancelled: bool = False
    tokens: dict[int, list[int]] = field(default_factory=dict)
    error: str = ""
    attempts: int = 0
    ended_at: float = 0.0


class VirtualRegion:
    """Hosts, routers and requests of one seed."""

    def __init__(self, seed: int, path: Path) -> None:
        self.rng = random.Random(seed)
        spec = replica_spec(path, num_blocks=40, context_length=128, max_sequences=4, max_batch_tokens=32)
        self.hosts = [Host(number, spec, self.rng) for number in range(self.rng.choice((2, 3)))]
        self.ledger = MemoryLedger()
        self.outcomes: list[Outcome] = []
        self.rank_losses = 0
        """By strikes; poison comes on top."""
        self._num_routers = self.rng.choice((1, 2))
        self._num_requests = self.rng.randint(3, 5)
        self._clock = LoopClock()

    async def run(self) -> None:
        """Play it to the end."""
        for host in self.hosts:
            host.start()
        fleets = [self._fleet(number) for number in range(self._num_routers)]
        world = [asyncio.create_task(self._control(fleets)), asyncio.create_task(self._strike())]
        await asyncio.sleep(0.1)
        await asyncio.gather(*(self._request(self.rng.choice(fleets), number) for number in range(self._num_requests)))
        await asyncio.sleep(1.0)
        for task in world:
            task.cancel()
        for fleet in fleets:
            await fleet.close()
        for host in self.hosts:
            for call in host.calls:
                await call.end()
            for task in host.loops:
                task.cancel()
            await asyncio.gather(*host.loops, return_exceptions=True)
        await asyncio.gather(*world, return_exceptions=True)

    def check(self) -> None:
        """What must hold whatever happened."""
        for outcome in self.outcomes:
            for choice, tokens in outcome.tokens.items():
                expected = answer(outcome.prompt, outcome.max_tokens, seed=outcome.seed, choice=choice)
                assert tokens == expected[: len(tokens)], "no token is lost, repeated or foreign"
                if not outcome.error and not outcome.is_cancelled:
                    assert len(tokens) == outcome.max_tokens, "an answer without an error is whole"
            assert outcome.ended_at <= outcome.deadline + 0.5, "nothing hangs beyond its deadline"
            if outcome.is_poison:
                assert outcome.is_cancelled or outcome.error in POISONED, f"poison ended with {outcome.error!r}"
            elif outcome.error == "QUARANTINED":
                assert self.rank_losses, "poison is alone the second time, so it draws nobody with it"
            elif outcome.error and outcome.deadline > PATIENCE_SECONDS:
                assert outcome.error in ("REPLICA_LOST", "NO_REPLICA"), outcome.error
                assert outcome.attempts >= 4 or outcome.error == "NO_REPLICA", "given up too early"
        emitted = sum(len(tokens) for outcome in self.outcomes for tokens in outcome.tokens.values())
        assert not self.ledger.open_rows
        assert self.ledger.completion_tokens == emitted, "every accepted token is billed once"
        for host in self.hosts:
            # What a step that never ends holds is not free.
            if host.is_ready and not host.ranks.is_stalled:
                assert host.scheduler.load().used_blocks == 0, "every block is free again"
                assert not host.scheduler.has_work

    def _fleet(self, number: int) -> Fleet:
        traffic = {MODEL: ModelTraffic(16, 32)}
        return Fleet(RouterId(f"router_{number}"), self._clock, random.Random(number), traffic, self._dial, [HOME])

    @asynccontextmanager
    async def _dial(self, address: str) -> AsyncIterator[Any]:
        host = next(host for host in self.hosts if host.replica_id == address)
        opened: list[VirtualCall] = []

        async def open_call() -> VirtualCall:
            while not host.is_up:
                await asyncio.sleep(0.2)
            call = VirtualCall(host.service, self.rng)
            opened.append(call)
            host.calls.append(call)
            return call

        try:
            yield open_call
        finally:
            for call in opened:
                host.calls.remove(call)
                await call.end()

    async def _control(self, fleets: list[Fleet]) -> None:
        """Rebuild what is broken, after a while; tell each router, after a while."""
        broken_since: dict[str, float] = {}
        loop = asyncio.get_running_loop()
        while True:
            for host in self.hosts:
                if host.is_ready and not host.ranks.is_stalled:
                    broken_since.pop(host.replica_id, None)
                elif loop.time() - broken_since.setdefault(host.replica_id, loop.time()) > self.rng.uniform(0.5, 3.0):
                    host.crash()
                    host.start()
            listed = [host.entry() for host in self.hosts if host.is_ready]
            for fleet in fleets:
                directory = control_pb2.WatchReplicasResponse(region=HOME.name, replicas=listed)
                loop.call_later(self.rng.choice((0.01, 0.3)), fleet.update, directory)
            await asyncio.sleep(0.4)

    async def _strike(self) -> None:
        """Faults, for a while."""
        loop = asyncio.get_running_loop()
        while loop.time() < FAULTS_SECONDS:
            await asyncio.sleep(self.rng.expovariate(2.0))
            host = self.rng.choice(self.hosts)
            if not host.is_up:
                continue
            fault = self.rng.choice(("rank", "engine", "stall", "cut", "hold", "none"))
            self.rank_losses += fault in ("rank", "stall")
            if fault == "rank":
                host.ranks.lose()
            elif fault == "engine":
                host.crash()
            elif fault == "stall":
                host.ranks.is_stalled = True
                loop.call_later(1.0, host.engine.ranks_lost, "no progress")
            elif fault == "cut":
                for call in host.calls:
                    call.cut()
            elif fault == "hold":
                for call in host.calls:
                    call.hold(loop.time() + self.rng.uniform(0.1, 3.0))

    async def _request(self, fleet: Fleet, number: int) -> None:
        rng = self.rng
        await asyncio.sleep(rng.uniform(0, 2.0))
        loop = asyncio.get_running_loop()
        patience = rng.choice((PATIENCE_SECONDS + 1, PATIENCE_SECONDS + 1, PATIENCE_SECONDS + 1, 1.5))
        prompt = [rng.randrange(900) for _ in range(rng.randint(1, 60))]
        outcome = Outcome(prompt, rng.randint(1, 30), seed=number, deadline=loop.time() + patience)
        if rng.random() < 0.05:
            outcome.is_poison = True
            prompt.append(POISON_TOKEN)
        self.outcomes.append(outcome)
        running = asyncio.create_task(self._relay(fleet, number, outcome, slow=rng.random() < 0.2))
        if rng.random() < 0.15:
            loop.call_later(rng.uniform(0, 2.0), running.cancel)
        await asyncio.gather(running, return_exceptions=True)
        outcome.ended_at = loop.time()
        outcome.is_cancelled = running.cancelled()
        if not running.cancelled() and (error := running.exception()):
            reason = getattr(error, "reason", None)
            if reason is None:
                raise error
            outcome.error = reason.name

    async def _relay(self, fleet: Fleet, number: int, outcome: Outcome, *, slow: bool) -> None:
        """As `InferenceService` does: news, ledger, client, window; settled however it ends."""
        choices = 1 + number % 2
        request_id = RequestId(f"req_{number}")
        spec = spec_of(
            outcome.prompt,
            outcome.max_tokens,
            choices=choices,
            sampling=sampling(seed=outcome.seed, temperature=1.0),
            request_id=request_id,
        )
        stream = LiveStream(spec, MODEL, [], fleet, self._clock, outcome.deadline)
        row = await self.ledger.open(Reservation(request_id, MODEL, len(outcome.prompt), choices * outcome.max_tokens))
        try:
            async with asyncio.timeout_at(outcome.deadline):  # gRPC ends the call then
                await self._read(stream, row, outcome, slow=slow)
        except TimeoutError:
            raise ServiceError(Reason.DEADLINE) from None
        finally:
            outcome.attempts = stream.num_attempts
            stream.close()
            emitted = sum(map(len, outcome.tokens.values()))
            await row.settle(Settlement(Ending.COMPLETE, len(outcome.prompt), 0, emitted, stream.num_attempts))

    async def _read(self, stream: LiveStream, row: MemoryRow, outcome: Outcome, *, slow: bool) -> None:
        while not stream.is_over:
            for news in await stream.next():
                row.accept(len(news.token_ids))
                outcome.tokens.setdefault(news.choice, []).extend(news.token_ids)
                if news.end:
                    stream.close_choice(news.choice, by_replica=True)
            if slow:
                await asyncio.sleep(0.1)
            stream.release()


def play(seed: int, path: Path) -> VirtualRegion:
    """One seed from beginning to end, checked."""
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    try:
        region = VirtualRegion(seed, path)
        loop.run_until_complete(region.run())
        region.check()
        return region
    finally:
        loop.close()
        logging.disable(logging.NOTSET)
