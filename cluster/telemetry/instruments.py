"""Prometheus instruments from catalogue entries, each on the registry that it is given. Knows no meaning of any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cluster.telemetry.catalogue import Metric


class Instruments:
    """Makes instruments on one registry; `constant` labels are filled in already, in the order of the metric's own."""

    def __init__(self, registry: CollectorRegistry, constant: Mapping[str, str] | None = None) -> None:
        self.registry = registry
        self.constant = dict(constant or {})

    def counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)

    def bind(self, instrument: Any, **labels: str) -> Any:
        """The child with the constant labels and these."""
        return instrument.labels(**self.constant, **labels) if self.constant or labels else instrument
