"""Tenants in the database: policies as JSON, disabled or not. Knows rows; no keys, no callers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from cluster.identity.principal import TenantPolicy
from cluster.ids import TenantId
from cluster.ledger.database import Database
from cluster.ledger.records import Limits

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class StoredTenant:
    """A tenant as the database has it."""

    tenant: TenantId
    policy: TenantPolicy
    disabled: bool
    created_at: float


def put_tenant(database: Database, tenant: StoredTenant) -> None:
    """Create it, or replace all but its age."""
    policy = tenant.policy
    limits = {window.value: limit for window, limit in policy.limits} | {"hard": policy.limits.hard}
    lists = {"models": policy.models, "regions": policy.regions}
    text = json.dumps({**lists, "limits": limits, "home": policy.home, "priority": policy.priority})
    database.execute(
        """INSERT INTO tenants (tenant, policy, disabled, created_at) VALUES (?, ?, ?, ?)
        ON CONFLICT (tenant) DO UPDATE SET policy = excluded.policy, disabled = excluded.disabled""",
        (tenant.tenant, text, int(tenant.disabled), tenant.created_at),
    )


def find_tenants(database: Database, tenant: str = "") -> list[StoredTenant]:
    """One tenant, or all, by name."""
    where, parameters = ("WHERE tenant = ?", (tenant,)) if tenant else ("", ())
    statement = f"SELECT tenant, policy, disabled, created_at FROM tenants {where} ORDER BY tenant"  # noqa: S608
    return [_tenant(*row) for row in database.query(statement, parameters)]


def _tenant(name: str, text: str, disabled: int, created_at: float) -> StoredTenant:
    raw = json.loads(text)
    lists = (tuple(raw["models"]), tuple(raw["regions"]))
    policy = TenantPolicy(*lists, Limits(**raw["limits"]), raw.get("home", ""), raw.get("priority", 0))
    return StoredTenant(TenantId(name), policy, bool(disabled), created_at)
