"""What the server's guard promises every service: a deadline, bounded requests, ports that are taken say so."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from argosy.v1 import models_pb2, models_pb2_grpc
from cluster import rpc
from cluster.errors import ConfigurationError, Reason
from tests.support.router_world import run_async

Context = grpc.aio.ServicerContext[Any, Any]


class Models(models_pb2_grpc.ModelServiceServicer):
    """Answers how much time is left as the number of ready replicas; `sleep` in the name takes ten seconds."""

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.GetModelResponse:  # noqa: N802
        if request.model == "sleep":
            await asyncio.sleep(10)
        return models_pb2.GetModelResponse(model=models_pb2.Model(ready_replicas=round(rpc.time_left())))


async def ask(model: str, timeout_seconds: float | None = None, **server_options: Any) -> models_pb2.GetModelResponse:
    server = rpc.server(**server_options)
    models_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    address = rpc.listen(server, "127.0.0.1:0", "test")
    await server.start()
    try:
        async with rpc.channel(address) as channel:
            stub: Any = models_pb2_grpc.ModelServiceStub(channel)
            return await stub.GetModel(models_pb2.GetModelRequest(model=model), timeout=timeout_seconds)
    finally:
        await server.stop(None)


def test_a_call_without_a_deadline_gets_the_servers() -> None:
    assert asyncio.run(ask("x", default_deadline=100.0)).model.ready_replicas == 100


def test_a_clients_own_deadline_is_kept() -> None:
    assert asyncio.run(ask("x", timeout_seconds=50.0, default_deadline=100.0)).model.ready_replicas in (49, 50)


def test_the_servers_deadline_ends_the_call() -> None:
    begin = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(ask("sleep", default_deadline=0.2))
    assert rpc.to_service_error(caught.value).reason is Reason.DEADLINE
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("size", [1100, 1900, 100_000])
def test_a_request_that_is_too_large_is_refused(size: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(ask("x" * size, max_receive=1000, timeout_seconds=5.0))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rpc.to_service_error(caught.value).reason is Reason.REQUEST_TOO_LARGE


def test_bytes_that_are_no_message_are_refused_and_no_exception_is_shown() -> None:
    async def send(data: bytes) -> None:
        server = rpc.server()
        models_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
        address = rpc.listen(server, "127.0.0.1:0", "test")
        await server.start()
        try:
            async with rpc.channel(address) as channel:
                await channel.unary_unary("/argosy.v1.ModelService/GetModel")(data, timeout=10)
        finally:
            await server.stop(None)

    for data in (b"\x00", b"\xff" * 20, b"\x0a\x02\xff\xfe"):  # the last: a string that is not UTF-8
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            asyncio.run(send(data))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert rpc.to_service_error(caught.value).reason is Reason.INVALID_FIELD
        assert "Error" not in (caught.value.details() or "")


def test_a_port_in_use_is_named_with_its_key() -> None:
    async def listen_twice() -> None:
        first, second = rpc.server(), rpc.server()
        address = rpc.listen(first, "127.0.0.1:0", "router.listen")
        await first.start()
        try:
            rpc.listen(second, address, "router.listen")
        finally:
            await first.stop(None)

    with pytest.raises(ConfigurationError, match=r"^router\.listen: cannot listen on 127\.0\.0\.1:\d+ .*another port$"):
        asyncio.run(listen_twice())


def test_a_reachable_server_that_falls_silent_is_noticed() -> None:
    """A connection whose peer stops reading and answering ends within seconds, not after the default minute."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # An HTTP/2 server that sends its settings, acknowledges the client's, and then does nothing at all.
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00\x00\x00\x04\x01\x00\x00\x00\x00")
        try:
            await asyncio.sleep(60)
        finally:
            writer.transport.abort()

    async def call() -> float:
        server = await asyncio.start_server(swallow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        begin = time.monotonic()
        try:
            async with rpc.channel(f"127.0.0.1:{port}") as channel:
                stub: Any = models_pb2_grpc.ModelServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetModel(models_pb2.GetModelRequest(model="x"), timeout=40)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            server.close()
        return time.monotonic() - begin

    assert asyncio.run(call()) < 15


@run_async
async def test_connections_beyond_the_bound_are_closed_and_room_comes_back() -> None:
    server = rpc.server(link=rpc.Link.PUBLIC, max_connections=3)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    address = rpc.listen(server, "127.0.0.1:0", "test")
    await server.start()

    async def is_served(channel: grpc.aio.Channel) -> bool:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError:
            return False
        return True

    channels = [rpc.channel(address, link=rpc.Link.PUBLIC) for _ in range(6)]
    try:
        assert [await is_served(channel) for channel in channels] == [True, True, True, False, False, False]
        for channel in (channels[0], *channels[4:]):
            await channel.close()
        async with asyncio.timeout(30):
            while not await is_served(channels[3]):
                await asyncio.sleep(0.05)
        assert await is_served(channels[1]), "those that were there are not touched"
    finally:
        for channel in channels:
            await channel.close()
        await server.stop(0)
