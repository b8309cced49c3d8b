"""Slices of limits between regions: gives them for tenants at home here, and keeps them for those at home elsewhere.

Knows stores and addresses of other regions; decides nothing about amounts (`cluster/ledger/slices.py` does).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from argosy.internal.v1 import quota_pb2, quota_pb2_grpc
from cluster import rpc
from cluster.clock import Clock
from cluster.errors import ConfigurationError, FieldViolation, Reason, ServiceError
from cluster.identity.tenants import find_tenants
from cluster.ids import TenantId
from cluster.ledger.database import Database
from cluster.ledger.ledger import StoredLedger, StoredRow
from cluster.ledger.records import Limits, Reservation, Window
from cluster.ledger.slices import UNLIMITED, Ask, Grant, give, prepare, take
from cluster.peers import Identity, Role

log = logging.getLogger(__name__)

KEEP_SECONDS = 0.5
"""Between looks at what is held."""
AHEAD_SECONDS = 5.0
"""So long before a window begins its slice is asked for."""
IDLE_SECONDS = 300.0
"""A tenant that asks for nothing so long gives its slices back."""
ASK_SECONDS = 2.0
"""By then a home has answered, or is taken for away."""

Context = grpc.aio.ServicerContext[Any, Any]


class QuotaService(quota_pb2_grpc.QuotaServiceServicer):
    """Gives slices for tenants whose home is here."""

    def __init__(self, ledger: StoredLedger, region: str) -> None:
        self._ledger = ledger
        self._region = region

    async def Lease(self, request: quota_pb2.LeaseRequest, context: Context) -> quota_pb2.LeaseResponse:  # noqa: N802
        """Change what a region holds."""
        asks = [_ask(request.tenant, entry) for entry in request.slices]
        if not request.region or request.region == self._region:
            violation = FieldViolation("region", f"must name another region than {self._region!r}")
            raise ServiceError(Reason.INVALID_FIELD, violations=(violation,))

        def answer(database: Database) -> list[Grant]:
            tenants = find_tenants(database, request.tenant)
            if not tenants or tenants[0].policy.home not in {"", self._region}:
                raise ServiceError(Reason.UNKNOWN_RESOURCE, f"tenant {request.tenant!r} at home here")
            limits = {} if tenants[0].disabled else dict(tenants[0].policy.limits)
            otherwise = 0 if tenants[0].disabled else UNLIMITED
            return [give(database, ask, request.region, limits.get(ask.window, otherwise)) for ask in asks]

        grants = await self._ledger.change(answer)
        slices = [quota_pb2.SliceGrant(granted=grant.granted, version=grant.version) for grant in grants]
        return quota_pb2.LeaseResponse(slices=slices)


@asynccontextmanager
async def giving(ledger: StoredLedger, region: str, listen: str, identity: Identity) -> AsyncIterator[str]:
    """Serve other regions on a private port while inside; its host:port.

    Raises:
        ConfigurationError: it must not or cannot listen there.
    """
    server = rpc.private_server(identity, share_port=True)
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(QuotaService(ledger, region), server)  # type: ignore[no-untyped-call]
    address = rpc.private_listen(server, listen, "router.quota_listen", identity)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


def _ask(tenant: str, entry: quota_pb2.SliceAsk) -> Ask:
    try:
        window = Window(entry.kind)
    except ValueError:
        violation = FieldViolation("slices.kind", f"{entry.kind[:64]!r} is no window")
        raise ServiceError(Reason.INVALID_FIELD, violations=(violation,)) from None
    return Ask(tenant, window, entry.bucket, entry.version, entry.wanted, entry.used)


@dataclass(slots=True)
class _Tenant:
    """One that was seen here and is at home elsewhere."""

    home: str
    limits: Limits
    seen_at: float
    largest_refused: int = 0
    asking: asyncio.Task[None] | None = None


class SlicedLedger:
    """The router's ledger where tenants may be at home in other regions: `cluster.router.metering.Ledger`."""

    def __init__(
        self,
        ledger: StoredLedger,
        region: str,
        homes: Mapping[str, Sequence[str]],
        identity: Identity,
        clock: Clock,
    ) -> None:
        """
        Args:
            homes: addresses of `QuotaService`, by region.
        """
        self._ledger = ledger
        self._region = region
        self._homes = homes
        self._identity = identity
        self._clock = clock
        self._tenants: dict[TenantId, _Tenant] = {}

    async def open(self, reservation: Reservation) -> StoredRow:
        """As the store's. A tenant that finds no room waits once for a larger slice."""
        if not reservation.home:
            return await self._ledger.open(reservation)
        tenant = self._see(reservation)
        try:
            return await self._ledger.open(reservation)
        except ServiceError as error:
            if error.reason is not Reason.QUOTA_EXCEEDED:
                raise
        tenant.largest_refused = max(tenant.largest_refused, reservation.tokens)
        await self._refresh(reservation.tenant, tenant)
        return await self._ledger.open(reservation)

    async def resume(self, reservation: Reservation, received: int, generation: int, begun_in: str) -> StoredRow:
        """As the store's."""
        if reservation.home:
            self._see(reservation)
        return await self._ledger.resume(reservation, received, generation, begun_in)

    async def run(self) -> None:
        """Keep the slices of all tenants that were seen lately; ends only by cancellation."""
        while True:
            await self._clock.sleep(KEEP_SECONDS)
            await asyncio.gather(*(self._refresh(name, tenant) for name, tenant in list(self._tenants.items())))

    def _see(self, reservation: Reservation) -> _Tenant:
        now = self._clock.monotonic()
        tenant = self._tenants.get(reservation.tenant)
        if tenant is None:
            tenant = self._tenants[reservation.tenant] = _Tenant(reservation.home, reservation.limits, now)
        tenant.home, tenant.limits, tenant.seen_at = reservation.home, reservation.limits, now
        return tenant

    async def _refresh(self, name: TenantId, tenant: _Tenant) -> None:
        """Ask for what is wanting; whoever comes while that is on its way waits for the same answer."""
        if tenant.asking is None or tenant.asking.done():
            tenant.asking = asyncio.create_task(self._ask_home(name, tenant))
        await asyncio.wait([tenant.asking])

    async def _ask_home(self, name: TenantId, tenant: _Tenant) -> None:
        is_idle = self._clock.monotonic() - tenant.seen_at > IDLE_SECONDS
        wall, refused, tenant.largest_refused = self._clock.wall(), tenant.largest_refused, 0

        def ask(database: Database) -> list[Ask]:
            asks = []
            for window, limit in tenant.limits:
                buckets = [window.bucket(wall)]
                if window.seconds_left(wall) < AHEAD_SECONDS and window is not Window.CONCURRENT_STREAMS:
                    buckets.append(buckets[0] + 1)
                cost = refused if window.counts_tokens else min(refused, 1)
                found = (prepare(database, name, window, bucket, limit, cost, is_idle=is_idle) for bucket in buckets)
                asks += [one for one in found if one is not None]
            return asks

        try:
            asks = await self._ledger.change(ask)
            if asks:
                grants = await self._lease(name, tenant.home, asks)
                await self._ledger.change(lambda database: _take_all(database, asks, grants))
            elif is_idle:
                self._tenants.pop(name, None)
        except (ServiceError, ConfigurationError) as error:
            log.warning("slices of %s from %s: %s", name, tenant.home, error)

    async def _lease(self, name: TenantId, home: str, asks: Sequence[Ask]) -> list[Grant]:
        """
        Raises:
            ServiceError: none of the home's routers answers, or it refuses.
            ConfigurationError: the home is not known, or our certificates cannot be read.
        """
        request = quota_pb2.LeaseRequest(region=self._region, tenant=name)
        for ask in asks:
            request.slices.add(
                kind=ask.window.kind, bucket=ask.bucket, version=ask.version, wanted=ask.wanted, used=ask.used
            )
        failure: ServiceError | None = None
        for address in self._homes.get(home, ()):
            async with rpc.private_channel(address, self._identity, to=Role.ROUTER) as channel:
                try:
                    stub = quota_pb2_grpc.QuotaServiceStub(channel)  # type: ignore[no-untyped-call]
                    response: quota_pb2.LeaseResponse = await stub.Lease(request, timeout=ASK_SECONDS)
                    return [Grant(entry.granted, entry.version) for entry in response.slices]
                except grpc.aio.AioRpcError as error:
                    failure = rpc.to_service_error(error)
        if failure is None:
            raise ConfigurationError(f"regions: {home!r} has no `quota` address; tenants at home there get no slices")
        raise failure


def _take_all(database: Database, asks: Sequence[Ask], grants: Sequence[Grant]) -> None:
    for ask, grant in zip(asks, grants, strict=True):
        take(database, ask, grant)
