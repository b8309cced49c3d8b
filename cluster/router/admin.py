"""`AdminService` and `UsageService` on a router: who asks, then the rules. Knows callers; writes no rows itself."""

from __future__ import annotations

from typing import Any

import grpc.aio

from argosy.v1 import admin_pb2 as admin
from argosy.v1 import admin_pb2_grpc, usage_pb2_grpc
from argosy.v1 import usage_pb2 as usage
from cluster.errors import Reason, ServiceError
from cluster.identity.administration import Administration
from cluster.identity.authenticator import Authenticator
from cluster.identity.principal import Scope, current_caller
from cluster.ledger.ledger import StoredLedger
from cluster.ledger.reports import record, summarize

Context = grpc.aio.ServicerContext[Any, Any]

END_OF_TIME = 1e12


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Manages tenants and keys for callers with the scope `admin`."""

    def __init__(self, administration: Administration, authenticator: Authenticator) -> None:
        self._administration = administration
        self._authenticator = authenticator

    async def SetTenant(self, request: admin.SetTenantRequest, context: Context) -> admin.SetTenantResponse:  # noqa: N802
        """Create or replace a tenant."""
        response = await self._administration.set_tenant(request, current_caller().subject)
        self._authenticator.forget()
        return response

    async def ListTenants(self, request: admin.ListTenantsRequest, context: Context) -> admin.ListTenantsResponse:  # noqa: N802
        """Every tenant."""
        return await self._administration.list_tenants(request, current_caller().subject)

    async def CreateKey(self, request: admin.CreateKeyRequest, context: Context) -> admin.CreateKeyResponse:  # noqa: N802
        """A new key, shown once."""
        return await self._administration.create_key(request, current_caller().subject)

    async def RotateKey(self, request: admin.RotateKeyRequest, context: Context) -> admin.RotateKeyResponse:  # noqa: N802
        """A new key in the place of an old one."""
        response = await self._administration.rotate_key(request, current_caller().subject)
        self._authenticator.forget()
        return response

    async def RevokeKey(self, request: admin.RevokeKeyRequest, context: Context) -> admin.RevokeKeyResponse:  # noqa: N802
        """The end of a key."""
        response = await self._administration.revoke_key(request, current_caller().subject)
        self._authenticator.forget()
        return response

    async def ListKeys(self, request: admin.ListKeysRequest, context: Context) -> admin.ListKeysResponse:  # noqa: N802
        """Keys without secrets."""
        return await self._administration.list_keys(request, current_caller().subject)


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """Tells what was used, to whom it concerns."""

    def __init__(self, ledger: StoredLedger) -> None:
        self._ledger = ledger

    async def SummarizeUsage(  # noqa: N802
        self, request: usage.SummarizeUsageRequest, context: Context
    ) -> usage.SummarizeUsageResponse:
        """Sums by tenant and model."""
        caller = current_caller()
        tenant: str | None = request.tenant
        if Scope.ADMIN in caller.scopes:
            tenant = request.tenant or None
        elif request.tenant not in {"", caller.tenant}:
            raise ServiceError(Reason.FORBIDDEN, "another tenant's usage needs the scope 'admin'")
        else:
            tenant = caller.tenant
        since = request.since.ToNanoseconds() / 1e9 if request.HasField("since") else 0.0
        until = request.until.ToNanoseconds() / 1e9 if request.HasField("until") else END_OF_TIME
        summaries = await self._ledger.change(lambda database: summarize(database, tenant, since, until))
        return usage.SummarizeUsageResponse(summaries=summaries)

    async def GetUsageRecord(  # noqa: N802
        self, request: usage.GetUsageRecordRequest, context: Context
    ) -> usage.GetUsageRecordResponse:
        """One request's record."""
        caller = current_caller()
        found = await self._ledger.change(lambda database: record(database, request.request_id))
        if found is None or (found.tenant != caller.tenant and Scope.ADMIN not in caller.scopes):
            raise ServiceError(Reason.UNKNOWN_RESOURCE, f"request {request.request_id!r}")
        return usage.GetUsageRecordResponse(record=found)
