"""One router's stream to one replica: requests out, deltas in, and knowing when the replica is dead.

Knows `ReplicaService` and nothing of clients, choice or continuation: whoever submitted a request is told that it was
lost, and why, and goes elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from argosy.internal.v1 import replica_pb2, replica_pb2_grpc
from cluster import rpc
from cluster.clock import Clock
from cluster.ids import Epoch, ReplicaId, RouterId, StreamId
from cluster.protocol import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS, REPLICA_PROTOCOL_VERSION

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""A replica that does not answer the handshake by then is tried again."""
RECONNECT_SECONDS = (0.1, 2.0)
"""First and longest pause between attempts to connect."""
WINDOW_TOKENS = 256
"""Tokens of one request that may be on their way or unread here; beyond, its replica pauses it."""


class ReplicaLostError(Exception):
    """The request cannot go on at this replica; it can at another."""


class Attempt:
    """One request at one replica: what has arrived and was not yet taken, never more than its window."""

    def __init__(self, stream_id: StreamId, connection: ReplicaConnection) -> None:
        self.stream_id = stream_id
        self._connection = connection
        self._deltas: list[replica_pb2.TokenDelta] = []
        self._unread = 0
        self._unreturned = 0
        self._lost: str | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def connection(self) -> ReplicaConnection:
        return self._connection

    @property
    def is_paused(self) -> bool:
        """True if the replica owes nothing: the window is full."""
        return self._unread + self._unreturned >= WINDOW_TOKENS

    async def take(self) -> list[replica_pb2.TokenDelta]:
        """Everything that has arrived, at least one delta.

        Raises:
            ReplicaLostError: the replica died, and all that came before is taken.
        """
        while not self._deltas:
            if self._lost is not None:
                raise ReplicaLostError(self._lost)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        deltas, self._deltas = self._deltas, []
        self._unreturned += self._unread
        self._unread = 0
        return deltas

    def release(self) -> None:
        """What was taken has been passed on: the replica may send as much again."""
        # In halves of a window, so that credits cost a small share of what tokens do.
        if self._unreturned >= WINDOW_TOKENS // 2:
            self._connection.credit(self.stream_id, self._unreturned)
            self._unreturned = 0

    def close(self, *, tell: bool) -> None:
        """Nothing more is wanted; `tell` the replica unless it has ended every choice itself."""
        self._connection.forget(self.stream_id, tell=tell)

    def push(self, delta: replica_pb2.TokenDelta) -> None:
        """Called by the connection for each delta."""
        self._unread += len(delta.token_ids)
        if self._unread + self._unreturned > 2 * WINDOW_TOKENS:
            self.lose("it sent more than its credit")
            return
        self._deltas.append(delta)
        self._wake()

    def lose(self, why: str) -> None:
        """Called by the connection when it ends."""
        self._lost = why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Which replica to connect to, as the directory says."""

    replica_id: ReplicaId
    address: str
    epoch: Epoch


class ReplicaConnection:
    """Keeps a stream to one epoch of one replica open until closed, connecting again whenever it ends."""

    def __init__(
        self,
        target: ReplicaAddress,
        router_id: RouterId,
        clock: Clock,
        on_load: Callable[[replica_pb2.Load], None],
        stall_seconds: Callable[[], float],
    ) -> None:
        """
        Args:
            on_load: called with the load of each report.
            stall_seconds: longest time that a step may take now, by the replica's own figures.
        """
        self.target = target
        self.rtt = 0.0
        """Seconds that the handshake took."""
        self.welcome: replica_pb2.Welcome | None = None
        """Set while connected."""
        self._router_id = router_id
        self._clock = clock
        self._on_load = on_load
        self._stall_seconds = stall_seconds
        self._attempts: dict[int, Attempt] = {}
        self._last_stream_id = 0
        self._outbox: deque[replica_pb2.ConnectRequest] = deque()
        self._credits: dict[int, int] = {}
        self._outgoing = asyncio.Event()
        self._last_report = 0.0
        self._step = -1
        self._last_progress = 0.0

    @property
    def is_live(self) -> bool:
        return self.welcome is not None

    @property
    def num_attempts(self) -> int:
        return len(self._attempts)

    def submit(self, spec: replica_pb2.GenerationSpec) -> Attempt:
        """Send a request. The spec's `initial_credit` must be `WINDOW_TOKENS`.

        Raises:
            ReplicaLostError: there is no connection.
        """
        if not self.is_live:
            raise ReplicaLostError("not connected")
        if not self._attempts:
            self._last_progress = self._clock.monotonic()
        self._last_stream_id += 1
        attempt = Attempt(StreamId(self._last_stream_id), self)
        self._attempts[attempt.stream_id] = attempt
        self._send(replica_pb2.ConnectRequest(submit=replica_pb2.Submit(stream_id=attempt.stream_id, spec=spec)))
        return attempt

    def credit(self, stream_id: StreamId, tokens: int) -> None:
        """Widen a request's window."""
        if stream_id in self._attempts:
            self._credits[stream_id] = self._credits.get(stream_id, 0) + tokens
            self._outgoing.set()

    def forget(self, stream_id: StreamId, *, tell: bool) -> None:
        """Drop what still arrives for a request, and `tell` the replica to give it up."""
        known = self._attempts.pop(stream_id, None) is not None
        self._credits.pop(stream_id, None)
        if known and tell:
            self._send(replica_pb2.ConnectRequest(cancel=replica_pb2.Cancel(stream_id=stream_id)))

    async def run(self) -> None:
        """Connect, serve, and connect again; ends only by cancellation."""
        pause, longest = RECONNECT_SECONDS
        try:
            while True:
                try:
                    await self._session()
                except ReplicaLostError as error:
                    why = str(error)
                except grpc.aio.AioRpcError as error:
                    why = rpc.to_service_error(error).reason.text
                except Exception as error:
                    # A defect here must cost one stream to one replica, not the replica for good.
                    log.exception("%s: the connection failed", self.target.replica_id)
                    why = type(error).__name__
                else:
                    why = "it ended the stream"
                if self.is_live:
                    pause = RECONNECT_SECONDS[0]
                log.log(logging.WARNING if self.is_live else logging.DEBUG, "%s: %s", self.target.replica_id, why)
                self._fail_all(why)
                await self._clock.sleep(pause)
                pause = min(2 * pause, longest)
        finally:
            self._fail_all("the router let it go")

    async def _session(self) -> None:
        """One stream, from handshake to end."""
        channel = rpc.channel(self.target.address)
        try:
            call = await self._handshake(channel)
            tasks = [
                asyncio.create_task(self._read(call)),
                asyncio.create_task(self._write(call)),
                asyncio.create_task(self._watch()),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
        finally:
            await channel.close()

    async def _handshake(self, channel: grpc.aio.Channel) -> Any:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await channel.channel_ready()
                call = replica_pb2_grpc.ReplicaServiceStub(channel).Connect()  # type: ignore[no-untyped-call]
                hello = replica_pb2.Hello(
                    router_id=self._router_id,
                    expected_epoch=self.target.epoch,
                    protocol_version=REPLICA_PROTOCOL_VERSION,
                )
                begin = self._clock.monotonic()
                await call.write(replica_pb2.ConnectRequest(hello=hello))
                answer = await call.read()
        except TimeoutError:
            raise ReplicaLostError(f"no answer within {CONNECT_SECONDS} s") from None
        if answer is grpc.aio.EOF:
            return await self._raise_status(call)
        welcome = answer.welcome
        if self.target.epoch and welcome.epoch != self.target.epoch:
            raise ReplicaLostError(f"it is at epoch {welcome.epoch}, not {self.target.epoch}")
        now = self._clock.monotonic()
        self.rtt = now - begin
        self._last_report = self._last_progress = now
        self.welcome = welcome
        log.info("%s: connected at epoch %d", self.target.replica_id, welcome.epoch)
        return call

    async def _raise_status(self, call: Any) -> None:
        """Raise what the call ended with."""
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            trailing = await call.trailing_metadata()
            raise grpc.aio.AioRpcError(code, await call.initial_metadata(), trailing, await call.details())
        raise ReplicaLostError("it ended the stream")

    async def _read(self, call: Any) -> None:
        """Hand each report's deltas to their requests."""
        attempts = self._attempts
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                await self._raise_status(call)
            report = message.report
            self._last_report = self._clock.monotonic()
            if report.step != self._step:
                self._step = report.step
                self._last_progress = self._last_report
            for delta in report.deltas:
                attempt = attempts.get(delta.stream_id)
                if attempt is not None:
                    attempt.push(delta)
            if report.HasField("load"):
                self._on_load(report.load)

    async def _write(self, call: Any) -> None:
        while True:
            await self._outgoing.wait()
            self._outgoing.clear()
            try:
                while self._outbox:
                    await call.write(self._outbox.popleft())
                credits, self._credits = self._credits, {}
                for stream_id, tokens in credits.items():
                    credit = replica_pb2.Credit(stream_id=stream_id, tokens=tokens)
                    await call.write(replica_pb2.ConnectRequest(credit=credit))
            except asyncio.InvalidStateError:
                raise ReplicaLostError("it ended the stream") from None

    async def _watch(self) -> None:
        """Raise when the replica has been silent for too long, or reports but makes no step."""
        while True:
            before = self._clock.monotonic()
            await self._clock.sleep(HEARTBEAT_SECONDS)
            now = self._clock.monotonic()
            if now - before > 2 * HEARTBEAT_SECONDS:
                # It was this process that stood still: what the replica sent meanwhile has yet to be read.
                self._last_report = self._last_progress = now
            if now - self._last_report > DEAD_AFTER_SECONDS:
                raise ReplicaLostError(f"silent for {now - self._last_report:.2f} s")
            if all(attempt.is_paused for attempt in self._attempts.values()):
                self._last_progress = now
            if now - self._last_progress > self._stall_seconds():
                raise ReplicaLostError(f"no step for {now - self._last_progress:.2f} s with requests pending")

    def _send(self, request: replica_pb2.ConnectRequest) -> None:
        if self.is_live:
            self._outbox.append(request)
            self._outgoing.set()

    def _fail_all(self, why: str) -> None:
        self.welcome = None
        self._step = -1
        self._outbox.clear()
        self._credits.clear()
        for attempt in list(self._attempts.values()):
            attempt.lose(why)
        self._attempts.clear()
