"""`ReplicaService`: one stream a router. Turns its messages into calls on the engine, the engine's news into reports.

Knows gRPC streams; decides nothing about requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf import duration_pb2

from argosy.internal.v1 import replica_pb2, replica_pb2_grpc
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.launch import ReplicaSpec
from cluster.protocol import HEARTBEAT_SECONDS
from cluster.replica.connection import Connection
from cluster.replica.engine import Engine

HELLO_SECONDS = 5.0

Requests = AsyncIterator[replica_pb2.ConnectRequest]
Context = grpc.aio.ServicerContext[Any, Any]


class ReplicaService(replica_pb2_grpc.ReplicaServiceServicer):
    """The routers' door to one engine."""

    def __init__(self, engine: Engine, replica: ReplicaSpec) -> None:
        self._engine = engine
        self._welcome = replica_pb2.Welcome(
            replica_id=replica.replica_id,
            epoch=replica.epoch,
            model=replica.model,
            block_size=replica.engine.block_size,
            context_length=replica.context_length,
            heartbeat=duration_pb2.Duration(nanos=int(HEARTBEAT_SECONDS * 1e9)),
            answers_probes=True,
        )

    async def Connect(self, request_iterator: Requests, context: Context) -> None:  # noqa: N802 - gRPC's name
        """Serve one router until either side ends the stream; its requests end with it."""
        connection = self._engine.connect(await self._hello(request_iterator))
        try:
            await context.write(replica_pb2.ConnectResponse(welcome=self._welcome))
            await self._converse(connection, request_iterator, context)
        finally:
            self._engine.disconnect(connection)

    async def _hello(self, requests: Requests) -> replica_pb2.Hello:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            first = replica_pb2.ConnectRequest()
        if not first.HasField("hello"):
            violation = FieldViolation("hello", f"must be the first message, within {HELLO_SECONDS:.0f} s")
            raise ServiceError(Reason.INVALID_FIELD, violations=(violation,))
        return first.hello

    async def _converse(self, connection: Connection, requests: Requests, context: Context) -> None:
        """Read and write at once; whichever ends first ends both."""
        reading = asyncio.ensure_future(self._read(connection, requests))
        writing = asyncio.ensure_future(self._write(connection, context))
        try:
            done, _ = await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, connection: Connection, requests: Requests) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    self._engine.submit(connection, request.submit)
                case "cancel":
                    self._engine.cancel(connection, request.cancel.stream_id)
                case "credit":
                    self._engine.credit(connection, request.credit.stream_id, request.credit.tokens)
                case "probe":
                    connection.probed(request.probe.number)
                case _:
                    raise ServiceError(Reason.INVALID_FIELD, "unexpected message")

    async def _write(self, connection: Connection, context: Context) -> None:
        while True:
            await connection.wait(HEARTBEAT_SECONDS)
            report = replica_pb2.StepReport(
                step=self._engine.step,
                deltas=connection.take(),
                load=self._engine.load(),
                predicted_step_seconds=self._engine.predicted_step_seconds,
                answered_probe=connection.take_probe(),
            )
            if connection.blocks is not None and not connection.blocks.is_empty:
                report.block_events.CopyFrom(connection.blocks.take())
            await context.write(replica_pb2.ConnectResponse(report=report))
            if connection.ended_with and not connection.has_news:
                raise connection.ended_with
