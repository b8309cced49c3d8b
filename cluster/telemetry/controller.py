"""What a controller counts: replicas by state, ranks, builds and failures. Knows names and numbers, no reconciling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from cluster.telemetry import catalogue as names
from cluster.telemetry.instruments import Instruments


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """One wanted replica as of now."""

    model: str
    replica: str
    state: str
    ranks: int
    ready_ranks: int


class ControllerMetrics:
    """One controller's instruments."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        make = Instruments(registry or CollectorRegistry())
        self.registry = make.registry
        self._replicas = make.gauge(names.REPLICAS)
        self._ready_ranks = make.gauge(names.RANKS_READY)
        self._ranks = make.gauge(names.RANKS)
        self._builds = make.counter(names.BUILDS)
        self._failures = make.counter(names.FAILURES)
        self._start_seconds = make.histogram(names.START_TIME)
        self._told: set[tuple[str, str]] = set()

    def observe(self, replicas: Iterable[ReplicaFigures]) -> None:
        """Every wanted replica; a model and state that none is in any more reads 0."""
        counts: Counter[tuple[str, str]] = Counter()
        for replica in replicas:
            counts[replica.model, replica.state] += 1
            self._ranks.labels(replica.model, replica.replica).set(replica.ranks)
            self._ready_ranks.labels(replica.model, replica.replica).set(replica.ready_ranks)
        self._told |= counts.keys()
        for key in self._told:
            self._replicas.labels(*key).set(counts[key])

    def building(self, model: str, replica: str) -> None:
        """A replica is started."""
        self._builds.labels(model, replica).inc()
        # A counter that is there from the start shows its first increase; one that appears with it does not.
        self._failures.labels(model, replica)

    def failed(self, model: str, replica: str) -> None:
        """A replica was found broken."""
        self._failures.labels(model, replica).inc()

    def ready(self, model: str, seconds: float) -> None:
        """A replica is ready, so many seconds after it was started."""
        self._start_seconds.labels(model).observe(seconds)
