"""Keeps the gauges of a router that no request moves: replicas, reservations, the ledger's lag. Reads, never acts."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.clock import Clock
from cluster.errors import Reason
from cluster.ids import ModelName
from cluster.ledger.ledger import StoredLedger
from cluster.router.fleet import Fleet
from cluster.router.service import InferenceService
from cluster.telemetry import RouterMetrics

REFRESH_SECONDS = 1.0


async def keep_gauges(
    metrics: RouterMetrics,
    models: Iterable[str],
    fleet: Fleet,
    service: InferenceService,
    ledger: StoredLedger | None,
    clock: Clock,
) -> None:
    """Refresh them for ever; ends by cancellation. Here and not at a scrape, whose thread must not walk the loop's
    dictionaries."""
    names = tuple(map(ModelName, models))
    metrics.expect(names, ("OK", "CANCELLED", *(reason.name for reason in Reason)))
    while True:
        for name in names:
            metrics.ready_replicas.labels(name).set(fleet.num_ready(name))
        metrics.reserved_tokens.set(service.reserved_tokens)
        if ledger is not None:
            metrics.ledger_lag.set(ledger.lag_seconds)
            metrics.ledger_waiting.set(ledger.num_waiting)
        await clock.sleep(REFRESH_SECONDS)
