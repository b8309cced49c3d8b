"""Who floods, resets, hangs half open or shares a replica with sixty others costs nobody else their answer."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import statistics
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest

from argosy.internal.v1 import control_pb2
from argosy.v1 import models_pb2, models_pb2_grpc
from cluster import rpc
from cluster.ids import ModelName, ReplicaId
from cluster.peers import Role
from tests.integration.test_router_engine import Listing
from tests.support.fake_replica import FakeDirectory, FakeReplica, hashed_tokens
from tests.support.guarded_world import Credentials, GuardedWorld, guarded_world
from tests.support.paged_fake import answer
from tests.support.peer_files import peer_files
from tests.support.replicas import replica_spec, running_replica, tiny_directory
from tests.support.router_world import MODEL, request, run_async
from tests.support.routers import RouterProcess, router_config

pytestmark = pytest.mark.model

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING = 1, 3, 4, 6
HALF_OPEN = 200


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def call_headers() -> bytes:
    """A gRPC call in HPACK without indexing (RFC 7541)."""

    def text(value: bytes) -> bytes:
        return bytes([len(value)]) + value

    path = b"\x04" + text(b"/argosy.v1.ModelService/ListModels")
    rest = b"\x0f\x10" + text(b"application/grpc") + b"\x00" + text(b"te") + text(b"trailers")
    return b"\x83\x87\x01" + text(b"router") + path + rest


def connect(address: str, context: ssl.SSLContext | None) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    if context is None:
        return connection
    return context.wrap_socket(connection, server_hostname=Role.ROUTER.dns_name)


def flood(address: str, context: ssl.SSLContext, frames: list[bytes], connections: int) -> None:
    """Send frames over several connections, each until it is cut off."""
    for _ in range(connections):
        with suppress(OSError), connect(address, context) as connection:
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
            for piece in frames:
                connection.sendall(piece)


def rapid_reset(address: str, context: ssl.SSLContext) -> None:
    """CVE-2023-44487, bounded."""
    headers = call_headers()
    streams = range(1, 2001, 2)
    cancel = struct.pack(">I", 8)
    pieces = [frame(HEADERS, 4, stream, headers) + frame(RST_STREAM, 0, stream, cancel) for stream in streams]
    flood(address, context, pieces, connections=4)


def ping_flood(address: str, context: ssl.SSLContext) -> None:
    flood(address, context, [frame(PING, 0, 0, b"12345678")] * 4000, connections=4)


def hang_half_open(address: str) -> list[socket.socket]:
    """Connections that begin a TLS handshake and leave it there."""
    hanging = []
    for _ in range(HALF_OPEN):
        connection = connect(address, None)
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        hanging.append(connection)
    return hanging


@run_async
async def test_t35_resets_pings_and_half_open_connections(smollm2_dir: Path, tmp_path: Path) -> None:
    peers = peer_files(tmp_path / "peers").identity(Role.ROUTER).files
    assert peers is not None
    context = ssl.create_default_context(cafile=str(peers.authority))
    context.set_alpn_protocols(["h2"])
    async with AsyncExitStack() as stack:
        fakes = FakeDirectory(FakeReplica(hashed_tokens([5])))
        tls = {"certificate": str(peers.certificate), "key": str(peers.key)}
        config = router_config(smollm2_dir, await fakes.start(), tmp_path / "ledger.db", tls=tls)
        stack.push_async_callback(fakes.stop)
        router = await RouterProcess.start(config, tmp_path / "argosy.json")
        stack.push_async_callback(router.end)
        process = psutil.Process(router.process.pid)
        credentials = rpc.channel_credentials(peers.authority)
        channel = await stack.enter_async_context(
            rpc.channel(router.address, link=rpc.Link.PUBLIC, credentials=credentials, server_name=Role.ROUTER.dns_name)
        )
        stub: Any = models_pb2_grpc.ModelServiceStub(channel)

        dropped: list[grpc.StatusCode] = []

        async def honest(count: int) -> float:
            """Seconds of the slowest of so many calls, one after the other."""
            slowest = 0.0
            for _ in range(count):
                begin = time.perf_counter()
                try:
                    await stub.ListModels(models_pb2.ListModelsRequest(), timeout=60)
                except grpc.aio.AioRpcError as error:
                    # A busy transport may drop a call that has not begun; every client of ours asks again.
                    dropped.append(error.code())
                slowest = max(slowest, time.perf_counter() - begin)
            return slowest

        await honest(10)
        calm, files = await honest(50), process.num_fds()
        hanging = await asyncio.to_thread(hang_half_open, router.address)
        try:
            attacks = [asyncio.to_thread(attack, router.address, context) for attack in (rapid_reset, ping_flood)]
            await asyncio.gather(honest(50), *attacks)
            async with asyncio.timeout(30):
                while await honest(20) > 5 * calm + 0.1:
                    pass
            async with asyncio.timeout(60):
                while process.num_fds() > files + 5:
                    await asyncio.sleep(0.1)
            assert len(dropped) <= 1, dropped
        finally:
            for connection in hanging:
                connection.close()


@asynccontextmanager
async def shared_engine(
    checkpoint: Path, tmp_path: Path, pass_seconds: float, **spec: Any
) -> AsyncIterator[GuardedWorld]:
    """A router that asks for credentials before one real engine whose ranks compute a checked fake."""
    tiny = tiny_directory(tmp_path / "tiny")
    named = dataclasses.replace(replica_spec(tiny, **spec), replica_id=ReplicaId(f"{MODEL}/0"), model=ModelName(MODEL))
    async with running_replica(named, "--fake", str(pass_seconds)) as replica:
        await replica.wait_for(control_pb2.REPLICA_STATE_READY)
        async with guarded_world(checkpoint, tmp_path) as world:
            assert world.directory_service is not None
            world.directory_service.replicas = [Listing(replica)]
            yield world


def ask(prompt: list[int], max_tokens: int) -> Any:
    return request(token_ids={"ids": prompt}, max_tokens=max_tokens, stop={"ignore_end_of_text": True})


async def first_token(world: GuardedWorld, credentials: Credentials, prompt: list[int], max_tokens: int) -> float:
    """Seconds to the first token; the answer is read to its end."""
    begin, first = time.perf_counter(), 0.0
    async for event in world.call(ask(prompt, max_tokens), credentials):
        if event.HasField("delta") and not first:
            first = time.perf_counter() - begin
    return first


@run_async
async def test_t37_a_tenant_at_fifty_times_its_share_delays_nobody_else(smollm2_dir: Path, tmp_path: Path) -> None:
    async with shared_engine(smollm2_dir, tmp_path, 0.01, max_sequences=4, num_blocks=64) as world:
        greedy, modest = await world.tenant("greedy"), await world.tenant("modest")
        await first_token(world, modest, [1, 2, 3], 2)
        waits: list[float] = []

        async def flood_always() -> None:
            while True:
                waits.append(await first_token(world, greedy, [7, 8, 9, len(waits) % 900], 30))

        flooding = [asyncio.create_task(flood_always()) for _ in range(100)]
        try:
            async with asyncio.timeout(60):
                while len(waits) < 20:
                    await asyncio.sleep(0.05)
            delayed = [await first_token(world, modest, [4, 5, 6, number], 4) for number in range(8)]
        finally:
            for task in flooding:
                task.cancel()
            await asyncio.gather(*flooding, return_exceptions=True)
        assert max(delayed) < statistics.median(waits[10:]) / 2, (delayed, waits)


@run_async
async def test_t39_sixty_four_tenants_see_nothing_of_each_other(smollm2_dir: Path, tmp_path: Path) -> None:
    """Slots far fewer than requests, two stages, blocks so few that sequences are preempted, one common prefix."""
    prefix = list(range(3, 67))
    async with shared_engine(smollm2_dir, tmp_path, 0.001, pp=2, max_sequences=6, num_blocks=40) as world:
        tenants = [await world.tenant(f"tenant-{number}") for number in range(64)]
        first, second = tenants[:2]
        cached = []
        for credentials in (first, first, second, second):
            reply = await world.generate(ask(prefix, 3), credentials)
            cached.append(reply.finished.usage.cached_prompt_tokens)
        assert cached[0] == cached[2] == 0, "what one tenant has computed tells another nothing"
        assert min(cached[1], cached[3]) > 0, "though each finds its own again"

        async def canary(number: int) -> None:
            prompt = [*prefix, 100 + number, 200 + number, 300 + number]
            reply = await world.generate(ask(prompt, 40), tenants[number])
            assert reply.token_ids() == answer(prompt, 40, seed=reply.started.seed, choice=0), number

        await asyncio.gather(*(canary(number) for number in range(64)))
