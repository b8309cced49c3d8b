"""What the ledger can tell: one request's record, and sums. Knows the table of requests; no callers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from argosy.v1 import usage_pb2 as api
from cluster.ledger.database import Database

_SUMMARY = """SELECT tenant, model,
    SUM(CASE WHEN ending IS NULL THEN 0 ELSE 1 END),
    SUM(CASE WHEN ending IS NULL THEN 0 ELSE prompt_tokens END),
    SUM(cached_prompt_tokens), SUM(completion_tokens),
    SUM(CASE WHEN ending IS NULL THEN 1 ELSE 0 END),
    SUM(CASE WHEN ending IS NULL THEN reserved_tokens ELSE 0 END), SUM(reasoning_tokens), SUM(device_seconds)
    FROM requests WHERE opened_at >= ? AND opened_at < ? {tenant}
    GROUP BY tenant, model ORDER BY tenant, model"""
_SUMMARY_FIELDS = (
    "tenant",
    "model",
    "requests",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "open_requests",
    "reserved_tokens",
    "reasoning_tokens",
)
_RECORD_FIELDS = (
    "request_id",
    "tenant",
    "subject",
    "model",
    "region",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "attempts",
    "reasoning_tokens",
    "device_seconds",
)


def summarize(database: Database, tenant: str | None, since: float, until: float) -> list[api.UsageSummary]:
    """Sums by tenant and model of requests that began in [since, until), Unix seconds; of one tenant, or of all."""
    statement = _SUMMARY.format(tenant="" if tenant is None else "AND tenant = ?")
    parameters = (since, until) if tenant is None else (since, until, tenant)
    rows = database.query(statement, parameters)
    return [_summary(*row) for row in rows]


def _summary(tenant: str, model: str, *sums: Any) -> api.UsageSummary:
    *counts, device_seconds = sums
    # PostgreSQL sums BIGINTs to NUMERIC.
    numbers = dict(zip(_SUMMARY_FIELDS[2:], map(int, counts), strict=True))
    return api.UsageSummary(tenant=tenant, model=model, device_seconds=device_seconds, **numbers)


def record(database: Database, request_id: str) -> api.UsageRecord | None:
    """One request's record."""
    columns = ", ".join(_RECORD_FIELDS)
    statement = f"SELECT {columns}, ending, opened_at, settled_at FROM requests WHERE request_id = ?"  # noqa: S608
    rows = database.query(statement, (request_id,))
    if not rows:
        return None
    *values, ending, opened_at, settled_at = rows[0]
    message = api.UsageRecord(**dict(zip(_RECORD_FIELDS, values, strict=True)), ending=ending or "")
    message.opened_at.CopyFrom(_timestamp(opened_at))
    if settled_at is None:
        message.prompt_tokens = 0
    else:
        message.settled_at.CopyFrom(_timestamp(settled_at))
    return message


def _timestamp(seconds: float) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return message
