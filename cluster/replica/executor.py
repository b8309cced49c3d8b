"""The listening side of the step channel: who has joined, what they report, which rank is lost.

Knows connections and reports; knows no requests and no scheduling. A rank that is lost ends the epoch, since no step
can finish without it: closing every connection makes the ranks that still run exit by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import DecodeError

from argosy.internal.v1 import control_pb2, step_pb2
from cluster.clock import Clock
from cluster.framing import HANDSHAKE_FRAME_BYTES, FrameError, encode_frame, prepare_socket, read_frame
from cluster.launch import ReplicaSpec
from cluster.peers import Role
from cluster.protocol import HEARTBEAT_SECONDS
from cluster.replica.health import ObservedClock, RankHealth
from cluster.replica.listener import HANDSHAKE_SECONDS, Listener, Stranger
from cluster.replica.slowness import Slowness, Work
from model.parallel.dims import RankCoordinates
from model.parallel.partition import RankShard

logger = logging.getLogger(__name__)


class EpochSink(Protocol):
    """What the executor tells the engine."""

    def ranks_ready(self) -> None:
        """Every rank has loaded and warmed up."""
        ...

    def step_done(self, output: step_pb2.StepOutput) -> None:
        """The output rank answered a step."""
        ...

    def ranks_lost(self, reason: str) -> None:
        """The epoch cannot go on; said once."""
        ...


@dataclass(slots=True)
class _Rank:
    """One rank that has joined."""

    writer: asyncio.StreamWriter
    hello: step_pb2.WorkerHello
    report: step_pb2.WorkerReport
    health: RankHealth
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Its connection ended."""
    is_lost: bool = False


class Executor:
    """The ranks of one epoch."""

    def __init__(self, replica: ReplicaSpec, shards: tuple[RankShard, ...], clock: Clock) -> None:
        self._replica = replica
        self._shards = {shard.coordinates: shard for shard in shards}
        self._clock = clock
        self._observed = ObservedClock(clock.monotonic())
        self._ranks: dict[RankCoordinates, _Rank] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._rendezvous: bytes | None = None
        self._slowness = Slowness(self._shards)
        self._predicted_seconds = 0.0
        self._ready = False
        self._over = False
        self._sink: EpochSink | None = None
        self._listener = Listener(replica.peers.identity(Role.ENGINE), self._welcome)

    async def start(self, host: str, sink: EpochSink) -> str:
        """Listen on a free port of `host`; its host:port.

        Raises:
            ConfigurationError: it must not or cannot listen there, or its certificates cannot be used.
        """
        self._sink = sink
        address = await self._listener.start(host)
        self._watcher = asyncio.create_task(self._watch())
        return address

    def send_step(self, step: int, message: bytes, predicted_seconds: float) -> None:
        """Send a serialized `EngineMessage` to every rank. `predicted_seconds`: the longest step now in flight."""
        frame = encode_frame(message)
        now = self._now()
        self._predicted_seconds = predicted_seconds
        for rank in self._ranks.values():
            rank.health.given_step(now, step)
            rank.writer.write(frame)

    def rank_statuses(self) -> list[control_pb2.RankStatus]:
        """Every rank of the epoch, joined or not, by stage and tensor rank."""
        return [self._status(coordinates, shard) for coordinates, shard in self._shards.items()]

    def missing_ranks(self) -> str:
        """What the start still waits for, in words."""
        waiting = []
        for coordinates in self._shards:
            rank = self._ranks.get(coordinates)
            phase = "not connected" if rank is None else rank.report.phase
            if phase != "ready":
                waiting.append(f"{_name(coordinates)} ({phase})")
        return "waits for " + ", ".join(waiting) if waiting else ""

    async def stop(self, grace_seconds: float) -> None:
        """Tell every rank to exit, wait until they have, then close."""
        self._over = True
        frame = encode_frame(step_pb2.EngineMessage(stop=step_pb2.Stop()).SerializeToString())
        for rank in self._ranks.values():
            rank.writer.write(frame)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await asyncio.gather(*(rank.left.wait() for rank in self._ranks.values()))
        self.close()

    def close(self) -> None:
        """Hang up on every rank: those that still run exit by themselves."""
        self._over = True
        self._listener.close()
        for rank in self._ranks.values():
            rank.writer.transport.abort()
        if self._watcher:
            self._watcher.cancel()

    @property
    def _tell(self) -> EpochSink:
        assert self._sink is not None, "nobody can have joined before start()"
        return self._sink

    def _now(self) -> float:
        return self._observed.observed(self._clock.monotonic())

    def _lose(self, complaints: dict[RankCoordinates, str]) -> None:
        """End the epoch; `complaints` say of each lost rank what is wrong with it."""
        if self._over:
            return
        self._over = True
        reasons = []
        for coordinates, complaint in complaints.items():
            rank = self._ranks[coordinates]
            rank.is_lost = True
            reasons.append(f"{_name(coordinates)} (pid {rank.hello.pid} on {rank.hello.node}): {complaint}")
        reason = "; ".join(reasons)
        logger.error("epoch %d ends: %s", self._replica.epoch, reason)
        self._tell.ranks_lost(reason)

    async def _watch(self) -> None:
        while not self._over:
            await self._clock.sleep(HEARTBEAT_SECONDS)
            self._observed.tick(self._clock.monotonic(), HEARTBEAT_SECONDS)
            now = self._now()
            complaints = {
                coordinates: f"{complaint}, at {rank.report.where or rank.report.phase}"
                for coordinates, rank in self._ranks.items()
                if (complaint := rank.health.complaint(now, self._predicted_seconds))
            }
            if complaints:
                self._lose(complaints)
            self._compare(now)

    def _compare(self, now: float) -> None:
        """Mark the ranks that the others wait for; they are not dead, and may recover."""
        work = {coordinates: Work.of(rank.report.figures) for coordinates, rank in self._ranks.items()}
        for change in self._slowness.observe(now, work):
            rank = self._ranks[change.rank]
            logger.warning(
                "%s (pid %d on %s) %s: %.1f ms a step, its peers %.1f ms",
                _name(change.rank),
                rank.hello.pid,
                rank.hello.node,
                "is slow" if change.is_slow else "is slow no longer",
                1e3 * change.step_seconds,
                1e3 * change.peer_seconds,
            )

    async def _welcome(self, stranger: Stranger) -> None:
        """One connection from its first byte to its last."""
        hello = await self._handshake(stranger.reader, stranger.writer)
        if hello is None:
            return
        stranger.admitted()
        coordinates = RankCoordinates(hello.stage, hello.tensor_rank)
        rank = self._join(coordinates, hello, stranger.writer)
        try:
            reason = await self._listen(coordinates, rank, stranger.reader)
        except (FrameError, DecodeError, OSError) as error:
            reason = str(error) or type(error).__name__
        rank.left.set()
        self._lose({coordinates: f"connection lost: {reason}"})

    async def _handshake(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> step_pb2.WorkerHello | None:
        """The peer's hello if it belongs to this epoch, else None. A stranger learns nothing from the difference."""
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                payload = await read_frame(reader, HANDSHAKE_FRAME_BYTES)
            message = step_pb2.WorkerMessage.FromString(payload or b"")
        except (FrameError, DecodeError, OSError, TimeoutError) as error:
            logger.warning("step channel: connection refused: %s", error or type(error).__name__)
            return None
        hello = message.hello
        coordinates = RankCoordinates(hello.stage, hello.tensor_rank)
        knows_secret = hmac.compare_digest(hello.secret, self._replica.secret)
        if not knows_secret or hello.epoch != self._replica.epoch:
            logger.warning("step channel: connection refused: wrong secret or epoch %d", hello.epoch)
            return None
        if coordinates not in self._shards or coordinates in self._ranks or self._over:
            logger.warning("step channel: connection refused: %s is unknown or taken", _name(coordinates))
            return None
        prepare_socket(writer.get_extra_info("socket"))
        return hello

    def _join(self, coordinates: RankCoordinates, hello: step_pb2.WorkerHello, writer: asyncio.StreamWriter) -> _Rank:
        now = self._now()
        rank = _Rank(writer, hello, step_pb2.WorkerReport(phase="starting"), RankHealth(now, now))
        self._ranks[coordinates] = rank
        if self._rendezvous:
            writer.write(self._rendezvous)
        return rank

    async def _listen(self, coordinates: RankCoordinates, rank: _Rank, reader: asyncio.StreamReader) -> str:
        """Take a rank's messages until it hangs up; why it ended."""
        while (payload := await read_frame(reader)) is not None:
            message = step_pb2.WorkerMessage.FromString(payload)
            if self._over:
                continue  # an ended epoch listens only for the end of the connection
            if message.HasField("report"):
                self._hear(coordinates, rank, message.report)
            elif message.HasField("output") and message.output.epoch == self._replica.epoch:
                rank.health.heard(self._now(), rank.health.progress, message.output.step)
                self._tell.step_done(message.output)
        return "closed by the rank"

    def _hear(self, coordinates: RankCoordinates, rank: _Rank, report: step_pb2.WorkerReport) -> None:
        was_ready = rank.report.phase == "ready"
        rank.report = report
        rank.health.heard(self._now(), report.progress, report.step)
        if report.failure:
            self._lose({coordinates: report.failure})
        if report.rendezvous_address and self._rendezvous is None:
            self._relay_rendezvous(report.rendezvous_address)
        if report.phase == "ready" and not was_ready:
            rank.health.ready = True
            self._check_ready()

    def _relay_rendezvous(self, address: str) -> None:
        message = step_pb2.EngineMessage(rendezvous=step_pb2.Rendezvous(address=address))
        self._rendezvous = encode_frame(message.SerializeToString())
        for rank in self._ranks.values():
            rank.writer.write(self._rendezvous)

    def _check_ready(self) -> None:
        joined = len(self._ranks) == len(self._shards)
        if joined and not self._ready and all(rank.health.ready for rank in self._ranks.values()):
            self._ready = True
            self._tell.ranks_ready()

    def _status(self, coordinates: RankCoordinates, shard: RankShard) -> control_pb2.RankStatus:
        status = control_pb2.RankStatus(
            stage=coordinates.stage,
            tensor_rank=coordinates.tp_rank,
            device=self._replica.device,
            start_layer=shard.layers.start,
            end_layer=shard.layers.end,
            query_heads=shard.heads.query_heads.size,
            kv_heads=shard.heads.kv_heads.size,
            phase="starting",
        )
        rank = self._ranks.get(coordinates)
        if rank is None:
            return status
        report = rank.report
        status.node, status.pid = rank.hello.node, rank.hello.pid
        status.phase = "lost" if rank.is_lost else report.phase
        status.slow = coordinates in self._slowness.slow
        status.step = rank.health.finished_step
        status.loaded_bytes, status.total_bytes = report.loaded_bytes, report.total_bytes
        status.phase_seconds.update(report.phase_seconds)
        status.figures.CopyFrom(report.figures)
        return status


def _name(coordinates: RankCoordinates) -> str:
    return f"stage {coordinates.stage} rank {coordinates.tp_rank}"
