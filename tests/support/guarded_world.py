"""Routers that require credentials, over one ledger and a fake replica, all in one event loop. Knows no models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from argosy.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc, models_pb2_grpc, usage_pb2, usage_pb2_grpc
from argosy.v1 import inference_pb2 as api
from cluster import rpc
from cluster.clock import SystemClock
from cluster.config import parse_config
from cluster.errors import ServiceError
from cluster.identity.administration import Administration
from cluster.identity.keys import SECRET_FILE, read_secret
from cluster.ledger.database import Row, SqliteDatabase
from cluster.ledger.ledger import LedgerOptions, StoredLedger
from cluster.router.main import serve
from tests.support.fake_replica import FakeDirectory, FakeReplica
from tests.support.router_world import MODEL, Reply

Credentials = tuple[tuple[str, str], ...]


def bearer(token: str) -> Credentials:
    return (("authorization", f"Bearer {token}"),)


@dataclass
class GuardedWorld:
    """What a test can touch."""

    directory: Path
    channels: list[grpc.aio.Channel]
    addresses: list[str]
    books: StoredLedger
    """A ledger of the test's own, over the routers' database."""
    administration: Administration
    stops: list[asyncio.Event] = field(default_factory=list)
    directory_service: FakeDirectory | None = None

    async def tenant(self, name: str, *scopes: str, **policy: Any) -> Credentials:
        """Make a tenant and a key of it."""
        tenant = admin_pb2.Tenant(tenant=name, policy=admin_pb2.TenantPolicy(**policy))
        await self.administration.set_tenant(admin_pb2.SetTenantRequest(tenant=tenant), "test")
        return bearer(await self.key(name, *scopes))

    async def key(self, tenant: str, *scopes: str, **fields: Any) -> str:
        asked = admin_pb2.CreateKeyRequest(tenant=tenant, scopes=scopes, **fields)
        return (await self.administration.create_key(asked, "test")).secret

    def call(self, request: api.GenerateRequest, credentials: Credentials = (), router: int = 0) -> Any:
        stub = inference_pb2_grpc.InferenceServiceStub(self.channels[router])
        return stub.Generate(request, timeout=60, metadata=credentials)

    async def generate(self, request: api.GenerateRequest, credentials: Credentials = (), router: int = 0) -> Reply:
        """Make a call and read it to its end.

        Raises:
            ServiceError: it was refused.
        """
        reply = Reply()
        try:
            async for event in self.call(request, credentials, router):
                reply.add(event)
        except grpc.aio.AioRpcError as error:
            raise rpc.to_service_error(error) from None
        return reply

    async def refusal(
        self, request: api.GenerateRequest, credentials: Credentials = (), router: int = 0
    ) -> ServiceError:
        try:
            await self.generate(request, credentials, router)
        except ServiceError as error:
            return error
        raise AssertionError("it was let through")

    @property
    def admin(self) -> Any:
        return admin_pb2_grpc.AdminServiceStub(self.channels[0])

    @property
    def models(self) -> Any:
        return models_pb2_grpc.ModelServiceStub(self.channels[0])

    async def record(self, request_id: str, credentials: Credentials) -> usage_pb2.UsageRecord:
        stub = usage_pb2_grpc.UsageServiceStub(self.channels[0])
        asked = usage_pb2.GetUsageRecordRequest(request_id=request_id)
        try:
            return (await stub.GetUsageRecord(asked, timeout=10, metadata=credentials)).record
        except grpc.aio.AioRpcError as error:
            raise rpc.to_service_error(error) from None

    async def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        return await self.books.change(lambda database: database.query(statement, parameters))

    async def until_settled(self) -> None:
        async with asyncio.timeout(20):
            while await self.query("SELECT 1 FROM requests WHERE ending IS NULL"):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def guarded_world(
    checkpoint: Path, directory: Path, *replicas: FakeReplica, routers: int = 1, mode: str = "required", **sections: Any
) -> AsyncIterator[GuardedWorld]:
    """Start replicas, their directory and routers over one SQLite file in `directory`; stop them afterwards."""
    async with AsyncExitStack() as stack:
        for number, replica in enumerate(replicas):
            replica.model, replica.replica_id = MODEL, f"{MODEL}/{number}"
            await replica.start()
            stack.push_async_callback(replica.kill)
        fakes = FakeDirectory(*replicas, region=str(sections.get("region", "local")))
        await fakes.start()
        stack.push_async_callback(fakes.stop)
        path = directory / "ledger.db"
        config = parse_config(
            {
                "models": [{"name": MODEL, "path": str(checkpoint)}],
                "router": {"listen": "127.0.0.1:0", "drain_seconds": 5, "reflection": True},
                "controller": {"listen": fakes.address},
                "ledger": {"path": str(path), "lease_seconds": 3},
                "identity": {"mode": mode},
                **sections,
            }
        )
        books = StoredLedger(lambda: SqliteDatabase(path), SystemClock(), LedgerOptions("test", directory, 3))
        await books.start()
        stack.push_async_callback(books.close)
        administration = Administration(books, read_secret(directory / SECRET_FILE), SystemClock())
        world = GuardedWorld(directory, [], [], books, administration, directory_service=fakes)
        for _ in range(routers):
            stop, cut = asyncio.Event(), asyncio.Event()
            listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(serve(config, stop=stop, cut=cut, on_listening=listening.set_result))
            stack.push_async_callback(_end, serving, stop, cut)
            await asyncio.wait([listening, serving], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            world.addresses.append(listening.result())
            channel = await stack.enter_async_context(rpc.channel(listening.result(), link=rpc.Link.PUBLIC))
            world.channels.append(channel)
            world.stops.append(stop)
        async with asyncio.timeout(20):
            while not all(replica.num_routers == routers for replica in replicas):
                await asyncio.sleep(0.02)
        yield world


async def _end(serving: asyncio.Task[None], stop: asyncio.Event, cut: asyncio.Event) -> None:
    stop.set()
    cut.set()
    await asyncio.gather(serving, return_exceptions=True)
