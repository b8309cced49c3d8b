"""Ledgers for tests: the same suite over every store, and readers that look into the tables. Knows no routers."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.clock import Clock, SystemClock
from cluster.ids import ModelName, RequestId
from cluster.ledger.database import Database
from cluster.ledger.ledger import LedgerOptions, StoredLedger
from cluster.ledger.records import Ending, Reservation, Settlement

Connect = Callable[[], Database]
_numbers = itertools.count()


def reservation(**fields: Any) -> Reservation:
    """10 prompt tokens and up to 100 more, under a fresh id."""
    fields.setdefault("request_id", RequestId(f"req_{next(_numbers)}"))
    fields.setdefault("prompt_tokens", 10)
    fields.setdefault("max_completion_tokens", 100)
    return Reservation(model=ModelName("m"), **fields)


def settlement(completion: int, ending: Ending = Ending.COMPLETE) -> Settlement:
    return Settlement(ending, 10, 4, completion)


@asynccontextmanager
async def ledger(
    connect: Connect, directory: Path, *, clock: Clock | None = None, lease_seconds: float = 10.0, **options: Any
) -> AsyncIterator[StoredLedger]:
    """A ledger that runs, closed afterwards."""
    holder = f"router_{next(_numbers)}"
    running = StoredLedger(connect, clock or SystemClock(), LedgerOptions(holder, directory, lease_seconds, **options))
    await running.start()
    try:
        yield running
    finally:
        await running.close()


async def rows(
    ledger: StoredLedger, columns: str = "*", where: str = "1 = 1", order: str = "request_id"
) -> list[tuple[Any, ...]]:
    """What the table of requests holds."""
    statement = f"SELECT {columns} FROM requests WHERE {where} ORDER BY {order}"
    found = await ledger.change(lambda db: db.query(statement))
    return [tuple(row) for row in found]


async def used(ledger: StoredLedger, tenant: str) -> dict[str, int]:
    """What the tenant's windows hold, all buckets together."""
    statement = "SELECT kind, SUM(used) FROM windows WHERE tenant = ? GROUP BY kind"
    return {row[0]: int(row[1]) for row in await ledger.change(lambda db: db.query(statement, (tenant,)))}
