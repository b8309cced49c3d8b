"""One router's stream to one replica: requests out, deltas in, and knowing when the replica is dead.

Knows `ReplicaService` and nothing of clients, choice or continuation: whoever submitted a request is told that it was
lost, and why, and goes elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc.aio

from argosy.internal.v1 import replica_pb2
from cluster import rpc
from cluster.clock import Clock
from cluster.ids import RouterId, StreamId
from cluster.protocol import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS, REPLICA_PROTOCOL_VERSION
from cluster.router.attempt import Attempt, ReplicaAddress, ReplicaLostError
from cluster.router.dial import Dial, OpenCall
from cluster.router.round_trip import PROBE_SECONDS, RoundTrip

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""A replica that does not answer the handshake by then is tried again."""
RECONNECT_SECONDS = (0.1, 2.0)
"""First and longest pause between attempts to connect."""
STALL_FACTOR = 5.0
"""A step may take this many times its predicted length."""
ENGINE_FIRST_SECONDS = 2 * HEARTBEAT_SECONDS
"""Advance that a replica's engine has in noticing that its ranks stand still."""
LEAST_WATCH_SECONDS = 0.01
"""Shortest pause between two looks at the clock."""
IDLE_STALL_SECONDS = 60.0
"""A replica that has requests and no step in flight may be compiling a grammar; not for ever."""


class ReplicaConnection:
    """Keeps a stream to one epoch of one replica open until closed, connecting again whenever it ends."""

    def __init__(
        self,
        target: ReplicaAddress,
        router_id: RouterId,
        clock: Clock,
        on_report: Callable[[replica_pb2.StepReport], None],
        on_change: Callable[[], None],
        stall_seconds: Callable[[], float],
        dial: Dial,
        round_trip: RoundTrip,
        wants_block_events: bool = False,
    ) -> None:
        """
        Args:
            on_report: called with each report, once its deltas are handed out.
            on_change: called when the connection has come, gone, or been measured.
            stall_seconds: longest time that a step of a replica may take that does not predict its steps itself.
            dial: opens `ReplicaService.Connect` at an address.
            round_trip: what is expected of it, and learns from the handshakes and probes.
            wants_block_events: reports shall say what the replica's prefix cache holds.
        """
        self.target = target
        self.welcome: replica_pb2.Welcome | None = None
        """Set while connected."""
        self._router_id = router_id
        self.clock = clock
        self._on_report = on_report
        self._on_change = on_change
        self._stall_seconds = stall_seconds
        self._dial = dial
        self._round_trip = round_trip
        self._wants_block_events = wants_block_events
        self._probe = 0
        self._probed_at = 0.0
        self._attempts: dict[int, Attempt] = {}
        self._last_stream_id = 0
        self._outbox: deque[replica_pb2.ConnectRequest] = deque()
        self._credits: dict[int, int] = {}
        self._outgoing = asyncio.Event()
        self._last_report = 0.0
        self._step = -1
        self._last_progress = 0.0
        self._predicted: float | None = None
        """Longest step in flight there, by its own prediction; None if it does not tell."""

    @property
    def is_live(self) -> bool:
        return self.welcome is not None

    @property
    def rtt(self) -> float:
        """Seconds there and back, as measured and smoothed."""
        return self._round_trip.seconds

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
            self._last_progress = self.clock.monotonic()
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
                await self.clock.sleep(pause)
                pause = min(2 * pause, longest)
        finally:
            self._fail_all("the router let it go")

    async def _session(self) -> None:
        """One stream, from handshake to end."""
        async with self._dial(self.target.address) as open_call:
            call = await self._handshake(open_call)
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

    async def _handshake(self, open_call: OpenCall) -> Any:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                call = await open_call()
                hello = replica_pb2.Hello(
                    router_id=self._router_id,
                    expected_epoch=self.target.epoch,
                    protocol_version=REPLICA_PROTOCOL_VERSION,
                    wants_block_events=self._wants_block_events,
                )
                begin = self.clock.monotonic()
                await call.write(replica_pb2.ConnectRequest(hello=hello))
                answer = await call.read()
        except TimeoutError:
            raise ReplicaLostError(f"no answer within {CONNECT_SECONDS} s") from None
        if answer is grpc.aio.EOF:
            return await self._raise_status(call)
        welcome = answer.welcome
        if self.target.epoch and welcome.epoch != self.target.epoch:
            raise ReplicaLostError(f"it is at epoch {welcome.epoch}, not {self.target.epoch}")
        now = self.clock.monotonic()
        self._round_trip.observe(now - begin)
        self._last_report = self._last_progress = self._probed_at = now
        self.welcome = welcome
        self._on_change()
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
            self._last_report = self.clock.monotonic()
            predicted = report.predicted_step_seconds if report.HasField("predicted_step_seconds") else None
            if report.step != self._step or bool(predicted) != bool(self._predicted):
                self._step = report.step
                self._last_progress = self._last_report
            self._predicted = predicted
            for delta in report.deltas:
                attempt = attempts.get(delta.stream_id)
                if attempt is not None:
                    attempt.push(delta)
            if report.HasField("answered_probe") and report.answered_probe == self._probe:
                self._round_trip.observe(self._last_report - self._probed_at)
                self._on_change()
            self._on_report(report)

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
            before = self.clock.monotonic()
            # Not a moment longer than silence may last: a region that is cut off must be left within a second.
            patience = DEAD_AFTER_SECONDS - (before - self._last_report)
            pause = min(HEARTBEAT_SECONDS, max(patience, LEAST_WATCH_SECONDS))
            await self.clock.sleep(pause)
            now = self.clock.monotonic()
            if now - before > pause + HEARTBEAT_SECONDS:
                # It was this process that stood still: what the replica sent meanwhile has yet to be read.
                self._last_report = self._last_progress = now
            self._send_probe(now)
            if now - self._last_report >= DEAD_AFTER_SECONDS:
                raise ReplicaLostError(f"silent for {now - self._last_report:.2f} s")
            if all(attempt.is_paused for attempt in self._attempts.values()):
                self._last_progress = now
            if now - self._last_progress > self._stall_limit():
                raise ReplicaLostError(f"no step for {now - self._last_progress:.2f} s with requests pending")

    def _send_probe(self, now: float) -> None:
        """Ask how long an answer takes, unless it was asked lately."""
        if self.welcome is not None and self.welcome.answers_probes and now - self._probed_at >= PROBE_SECONDS:
            self._probe += 1
            self._probed_at = now
            self._send(replica_pb2.ConnectRequest(probe=replica_pb2.Probe(number=self._probe)))

    def _stall_limit(self) -> float:
        """Seconds without a step after which the replica counts as lost."""
        if self._predicted is None:
            return self._stall_seconds()
        if self._predicted == 0.0:
            return IDLE_STALL_SECONDS
        # The engine sees the same, and knows which requests were in the step: it goes first.
        return max(DEAD_AFTER_SECONDS, STALL_FACTOR * self._predicted) + ENGINE_FIRST_SECONDS

    def _send(self, request: replica_pb2.ConnectRequest) -> None:
        if self.is_live:
            self._outbox.append(request)
            self._outgoing.set()

    def _fail_all(self, why: str) -> None:
        self.welcome = None
        self._on_change()
        self._step = -1
        self._predicted = None
        self._outbox.clear()
        self._credits.clear()
        for attempt in list(self._attempts.values()):
            attempt.lose(why)
        self._attempts.clear()
