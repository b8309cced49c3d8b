"""Metrics of each process as objects that are passed in, each on its own registry. Knows Prometheus; exports nothing.

Observed once a request, never once a token.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class RouterMetrics:
    """What a router counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """
        Args:
            registry: where they are registered; a fresh one by default, so that several routers fit one process.
        """
        self.registry = registry or CollectorRegistry()
        self.requests = Counter(
            "argosy_router_requests",
            "Requests that ended, by model and reason (OK or an error's reason).",
            ("model", "reason"),
            registry=self.registry,
        )
        self.live_streams = Gauge("argosy_router_live_streams", "Requests in flight.", registry=self.registry)
        self.tokens = Counter(
            "argosy_router_tokens",
            "Tokens, by model and kind (prompt, cached, completion).",
            ("model", "kind"),
            registry=self.registry,
        )
        self.continuations = Counter(
            "argosy_router_continuations",
            "Times that a live stream went on at another replica.",
            ("model",),
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "argosy_router_first_token_seconds",
            "From a request's arrival to its first accepted token.",
            ("model",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "argosy_router_request_seconds",
            "From a request's arrival to its end.",
            ("model",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
