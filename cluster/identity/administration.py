"""Tenants and keys as `AdminService` offers them: checks requests, changes rows, writes the audit. Knows no gRPC.

The command line uses it directly on the operator's own machine, routers through the service: one set of rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from argosy.v1 import admin_pb2 as api
from argosy.v1 import inference_pb2
from cluster.clock import Clock
from cluster.config import REGION_NAME
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.identity.keys import StoredKey, find_keys, insert_key, keyed_hash, new_key
from cluster.identity.principal import Scope, TenantPolicy
from cluster.identity.tenants import NAME_PATTERN, StoredTenant, find_tenants, put_tenant
from cluster.ids import TenantId
from cluster.ledger.database import Database
from cluster.ledger.records import Limits, Window

DEFAULT_SCOPES = frozenset({Scope.GENERATE, Scope.USAGE})
DEFAULT_OVERLAP_SECONDS = 86400.0
REGION_PATTERN = re.compile(REGION_NAME)
INTERACTIVE = inference_pb2.PRIORITY_CLASS_INTERACTIVE
MAX_LABEL = 128
MAX_LIMIT = 2**62
"""So that sums of limits fit the database's integers."""

_Result = TypeVar("_Result")


class Store(Protocol):
    """Where changes are made: a ledger, or a connection of one's own."""

    async def change(self, function: Callable[[Database], _Result]) -> _Result: ...


class Administration:
    """The rules of managing."""

    def __init__(self, store: Store, secret: bytes, clock: Clock) -> None:
        self._store = store
        self._secret = secret
        self._clock = clock

    async def set_tenant(self, request: api.SetTenantRequest, actor: str) -> api.SetTenantResponse:
        """
        Raises:
            ServiceError: a field is wrong.
        """
        asked = request.tenant
        _check(_tenant_problems(asked))
        now = self._clock.wall()

        def change(database: Database) -> StoredTenant:
            stored = StoredTenant(TenantId(asked.tenant), _policy(asked.policy), asked.disabled, now)
            put_tenant(database, stored)
            self._audit(database, actor, "disable tenant" if asked.disabled else "set tenant", asked.tenant)
            return find_tenants(database, asked.tenant)[0]

        return api.SetTenantResponse(tenant=_tenant_message(await self._store.change(change)))

    async def list_tenants(self, request: api.ListTenantsRequest, actor: str) -> api.ListTenantsResponse:
        tenants = await self._store.change(find_tenants)
        return api.ListTenantsResponse(tenants=[_tenant_message(tenant) for tenant in tenants])

    async def create_key(self, request: api.CreateKeyRequest, actor: str) -> api.CreateKeyResponse:
        """
        Raises:
            ServiceError: a field is wrong, or there is no such tenant.
        """
        _check(_key_problems(request))
        now = self._clock.wall()
        lifetime = request.lifetime.ToNanoseconds() / 1e9 if request.HasField("lifetime") else None
        key_id, secret = new_key()
        key = StoredKey(
            key_id,
            keyed_hash(self._secret, secret),
            TenantId(request.tenant),
            request.label,
            frozenset(map(Scope, request.scopes)) or DEFAULT_SCOPES,
            now,
            None if lifetime is None else now + lifetime,
            None,
        )

        def change(database: Database) -> None:
            if not find_tenants(database, request.tenant):
                raise ServiceError(Reason.UNKNOWN_RESOURCE, f"tenant {request.tenant!r}")
            insert_key(database, key)
            self._audit(database, actor, "create key", f"{request.tenant}/{key_id}")

        await self._store.change(change)
        return api.CreateKeyResponse(key=_key_message(key), secret=secret)

    async def rotate_key(self, request: api.RotateKeyRequest, actor: str) -> api.RotateKeyResponse:
        """
        Raises:
            ServiceError: there is no such key in force.
        """
        now = self._clock.wall()
        overlap = request.overlap.ToNanoseconds() / 1e9 if request.HasField("overlap") else DEFAULT_OVERLAP_SECONDS
        if overlap < 0:
            _check(iter([FieldViolation("overlap", "must not be negative")]))
        key_id, secret = new_key()

        def change(database: Database) -> StoredKey:
            found = find_keys(database, "key_id", request.key_id)
            if not found or not found[0].is_in_force(now):
                raise ServiceError(Reason.UNKNOWN_RESOURCE, f"key {request.key_id!r} in force")
            old = found[0]
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            expires_at = None if lifetime is None else now + lifetime
            digest = keyed_hash(self._secret, secret)
            key = replace(old, key_id=key_id, hash=digest, created_at=now, expires_at=expires_at)
            insert_key(database, key)
            ends = now + overlap if old.expires_at is None else min(old.expires_at, now + overlap)
            database.execute("UPDATE api_keys SET expires_at = ? WHERE key_id = ?", (ends, old.key_id))
            self._audit(database, actor, "rotate key", f"{old.tenant}/{old.key_id} to {key_id}")
            return key

        key = await self._store.change(change)
        return api.RotateKeyResponse(key=_key_message(key), secret=secret)

    async def revoke_key(self, request: api.RevokeKeyRequest, actor: str) -> api.RevokeKeyResponse:
        """
        Raises:
            ServiceError: there is no such key.
        """
        now = self._clock.wall()

        def change(database: Database) -> None:
            statement = "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, ?) WHERE key_id = ?"
            if not database.execute(statement, (now, request.key_id)):
                raise ServiceError(Reason.UNKNOWN_RESOURCE, f"key {request.key_id!r}")
            self._audit(database, actor, "revoke key", request.key_id)

        await self._store.change(change)
        return api.RevokeKeyResponse()

    async def list_keys(self, request: api.ListKeysRequest, actor: str) -> api.ListKeysResponse:
        column = "tenant" if request.tenant else ""
        keys = await self._store.change(lambda database: find_keys(database, column, request.tenant))
        return api.ListKeysResponse(keys=[_key_message(key) for key in keys])

    def _audit(self, database: Database, actor: str, action: str, target: str) -> None:
        values = (self._clock.wall(), actor, action, target)
        database.execute("INSERT INTO audit (at, actor, action, target) VALUES (?, ?, ?, ?)", values)


def _check(problems: Iterator[FieldViolation]) -> None:
    if violations := tuple(problems):
        raise ServiceError(Reason.INVALID_FIELD, violations=violations)


def _tenant_problems(tenant: api.Tenant) -> Iterator[FieldViolation]:
    if not NAME_PATTERN.fullmatch(tenant.tenant):
        yield FieldViolation("tenant.tenant", "must be 1 to 64 lower-case letters, digits, '-', '_' or '.'")
    for window in Window:
        if getattr(tenant.policy.limits, window.value) > MAX_LIMIT:
            yield FieldViolation(f"tenant.policy.limits.{window.value}", f"must be at most {MAX_LIMIT}")
    if tenant.policy.priority_class not in inference_pb2.PriorityClass.values():
        yield FieldViolation("tenant.policy.priority_class", f"{tenant.policy.priority_class} is not a priority class")
    if tenant.policy.home_region and not REGION_PATTERN.fullmatch(tenant.policy.home_region):
        yield FieldViolation("tenant.policy.home_region", f"{tenant.policy.home_region[:64]!r} is no region's name")


def _key_problems(request: api.CreateKeyRequest) -> Iterator[FieldViolation]:
    known = [scope.value for scope in Scope]
    for number, scope in enumerate(request.scopes):
        if scope not in known:
            yield FieldViolation(f"scopes[{number}]", f"must be one of {', '.join(known)}")
    if len(request.label) > MAX_LABEL:
        yield FieldViolation("label", f"must be at most {MAX_LABEL} characters")
    if request.HasField("lifetime") and request.lifetime.ToNanoseconds() <= 0:
        yield FieldViolation("lifetime", "must be positive")


def _policy(message: api.TenantPolicy) -> TenantPolicy:
    asked = message.limits
    limits: dict[str, Any] = {
        window.value: getattr(asked, window.value) for window in Window if asked.HasField(window.value)
    }
    held = Limits(**limits, hard=not asked.soft)
    lists = (tuple(message.models), tuple(message.regions))
    return TenantPolicy(*lists, held, message.home_region, max(0, message.priority_class - INTERACTIVE))


def _tenant_message(tenant: StoredTenant) -> api.Tenant:
    limits = {window.value: limit for window, limit in tenant.policy.limits}
    policy = api.TenantPolicy(
        models=tenant.policy.models,
        regions=tenant.policy.regions,
        home_region=tenant.policy.home,
        priority_class=inference_pb2.PriorityClass.Name(INTERACTIVE + tenant.policy.priority),
        limits=api.Limits(**limits, soft=not tenant.policy.limits.hard),
    )
    created_at = timestamp(tenant.created_at)
    return api.Tenant(tenant=tenant.tenant, policy=policy, disabled=tenant.disabled, created_at=created_at)


def _key_message(key: StoredKey) -> api.Key:
    return api.Key(
        key_id=key.key_id,
        tenant=key.tenant,
        label=key.label,
        scopes=sorted(scope.value for scope in key.scopes),
        created_at=timestamp(key.created_at),
        expires_at=timestamp(key.expires_at),
        revoked_at=timestamp(key.revoked_at),
    )


def timestamp(seconds: float | None) -> Timestamp | None:
    """Unix seconds as a message; None stays unset."""
    if seconds is None:
        return None
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return message
