"""What a controller counts: replicas by state, ranks, builds and failures. Knows names and numbers, no reconciling."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from cluster.telemetry import catalogue as names
from cluster.telemetry.instruments import Instruments


class ControllerMetrics:
    """One controller's instruments."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        make = Instruments(registry or CollectorRegistry())
        self.registry = make.registry
        self.replicas = make.gauge(names.REPLICAS)
        self.ready_ranks = make.gauge(names.RANKS_READY)
        self.ranks = make.gauge(names.RANKS)
        self.builds = make.counter(names.BUILDS)
        self.failures = make.counter(names.FAILURES)
        self.start_seconds = make.histogram(names.START_TIME)
