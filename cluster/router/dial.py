"""How a replica is reached: a channel to its address, and a `Connect` call on it. Knows transports; no messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from argosy.internal.v1 import replica_pb2_grpc
from cluster import rpc
from cluster.peers import Identity, Role

PLAIN_ROUTER = Identity(Role.ROUTER)
OpenCall: TypeAlias = Callable[[], Awaitable[Any]]
"""Starts a `Connect` call: something with the `read`, `write`, `code`, … of `grpc.aio.StreamStreamCall`."""
Dial: TypeAlias = Callable[[str], AbstractAsyncContextManager[OpenCall]]
"""A channel to an address, closed when left."""


@asynccontextmanager
async def dial_grpc(address: str, identity: Identity = PLAIN_ROUTER) -> AsyncIterator[OpenCall]:
    """The transport of production; each session shows the certificate of that moment."""
    channel = rpc.private_channel(address, identity, to=Role.ENGINE)

    async def open_call() -> Any:
        await channel.channel_ready()
        return replica_pb2_grpc.ReplicaServiceStub(channel).Connect()  # type: ignore[no-untyped-call]

    try:
        yield open_call
    finally:
        await channel.close()
