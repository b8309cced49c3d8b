"""What a router counts: once a request, never once a token. Knows endings and seconds; no streams, no sockets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from cluster.telemetry import catalogue as names
from cluster.telemetry.instruments import Instruments

PROVIDER = "argosy"
OPERATION = "chat"
KINDS = ("prompt", "cached", "completion")
"""Of tokens."""


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """One request that ended, as far as it came. Times are seconds."""

    model: str
    tenant: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    attempts: int
    total: float
    queued: float | None = None
    """Until a replica was sent it; None if none was."""
    first_token: float | None = None
    """Until its first token; None if there was none."""
    gaps: tuple[float, ...] = ()
    """Of each continuation that brought a token."""
    device_seconds: float = 0.0


class RouterMetrics:
    """One router's instruments."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """
        Args:
            registry: where they are registered; a fresh one by default, so that several routers fit one process.
        """
        make = Instruments(registry or CollectorRegistry())
        self.registry = make.registry
        self.requests = make.counter(names.REQUESTS)
        self.live_streams = make.gauge(names.LIVE_STREAMS)
        self.tokens = make.counter(names.TOKENS)
        self.continuations = make.counter(names.CONTINUATIONS)
        self.reserved_tokens = make.gauge(names.RESERVED_TOKENS)
        self.ready_replicas = make.gauge(names.READY_REPLICAS)
        self.ledger_lag = make.gauge(names.LEDGER_LAG)
        self.ledger_waiting = make.gauge(names.LEDGER_WAITING)
        self._gaps = make.histogram(names.CONTINUATION_GAP)
        self._first_token = make.histogram(names.FIRST_TOKEN)
        self._token_time = make.histogram(names.TOKEN_TIME)
        self._request_time = make.histogram(names.REQUEST_TIME)
        self._queue = make.histogram(names.ROUTER_QUEUE)
        self._tenant_tokens = make.counter(names.TENANT_TOKENS)
        self._tenant_device_time = make.counter(names.TENANT_DEVICE_TIME)
        self._gen_ai_request = make.histogram(names.GEN_AI_REQUEST)
        self._gen_ai_first_token = make.histogram(names.GEN_AI_FIRST_TOKEN)
        self._gen_ai_token_time = make.histogram(names.GEN_AI_TOKEN_TIME)
        self._gen_ai_usage = make.histogram(names.GEN_AI_USAGE)
        self._tenants: set[str] = set()

    def expect(self, models: Iterable[str], reasons: Iterable[str]) -> None:
        """Begin every series of these models at 0: a counter that appears with its first event hides that event, since
        Prometheus sees no increase."""
        reasons = tuple(reasons)
        for model in models:
            for reason in reasons:
                self.requests.labels(model, reason)
            for kind in KINDS:
                self.tokens.labels(model, kind)
            self.continuations.labels(model)
            for histogram in (self._gaps, self._first_token, self._token_time, self._request_time, self._queue):
                histogram.labels(model)

    def observe(self, request: RequestFigures) -> None:
        """A request ended, in whatever way."""
        model = request.model
        gen_ai = (OPERATION, PROVIDER, model)
        self._count_tokens(request, gen_ai)
        if request.attempts > 1:
            self.continuations.labels(model).inc(request.attempts - 1)
        for gap in request.gaps:
            self._gaps.labels(model).observe(gap)
        if request.queued is not None:
            self._queue.labels(model).observe(request.queued)
        if request.first_token is not None:
            self._first_token.labels(model).observe(request.first_token)
            self._gen_ai_first_token.labels(*gen_ai).observe(request.first_token)
            if request.completion_tokens > 1:
                pace = (request.total - request.first_token) / (request.completion_tokens - 1)
                self._token_time.labels(model).observe(pace)
                self._gen_ai_token_time.labels(*gen_ai).observe(pace)
        self._request_time.labels(model).observe(request.total)
        self._gen_ai_request.labels(*gen_ai).observe(request.total)

    def _count_tokens(self, request: RequestFigures, gen_ai: tuple[str, str, str]) -> None:
        tenant = self._label_of(request.tenant)
        counts = (request.prompt_tokens, request.cached_tokens, request.completion_tokens)
        for kind, count in zip(KINDS, counts, strict=True):
            self.tokens.labels(request.model, kind).inc(count)
            self._tenant_tokens.labels(tenant, kind).inc(count)
        self._tenant_device_time.labels(tenant).inc(request.device_seconds)
        self._gen_ai_usage.labels(*gen_ai, "input").observe(request.prompt_tokens)
        self._gen_ai_usage.labels(*gen_ai, "output").observe(request.completion_tokens)

    def _label_of(self, tenant: str) -> str:
        """The tenant's own label while there are few; a counter that changed its meaning would look like a reset."""
        if tenant not in self._tenants:
            if len(self._tenants) >= names.MAX_TENANTS:
                return names.OTHER_TENANTS
            self._tenants.add(tenant)
        return tenant
