"""Spans over OpenTelemetry's SDK, sent to a collector over OTLP/gRPC. The only module that imports OpenTelemetry.

The SDK's globals are not touched: provider and context are objects here, so that several engines fit one process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.config import TracesConfig
from cluster.telemetry.tracing import TRACEPARENT, Attributes, Kind, Span

EXPORT_SECONDS = 5.0
"""Longest that one attempt to send may take."""
FLUSH_MILLISECONDS = 3000
"""Longest that the end of the process waits for the last spans."""
_PROPAGATOR = TraceContextTextMapPropagator()
_KINDS: dict[Kind, trace.SpanKind] = {
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "internal": trace.SpanKind.INTERNAL,
}


class OtlpTracer:
    """See `cluster.telemetry.tracing.Tracer`. A thread of its own sends, in batches."""

    def __init__(self, config: TracesConfig, service: str, attributes: Attributes) -> None:
        resource = Resource.create({"service.name": f"argosy-{service}", **attributes})
        sampler = ParentBased(TraceIdRatioBased(config.sample))
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        endpoint = config.endpoint or ""
        exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("argosy")

    def start(
        self,
        name: str,
        kind: Kind,
        parent: str,
        attributes: Attributes,
        *,
        links: Sequence[str] = (),
        seconds_ago: float = 0.0,
    ) -> Span:
        span = self._tracer.start_span(
            name,
            _context(parent),
            _KINDS[kind],
            dict(attributes),
            [trace.Link(trace.get_current_span(_context(link)).get_span_context()) for link in links],
            time.time_ns() - int(seconds_ago * 1e9),
        )
        return OtlpSpan(self._tracer, span)

    def close(self) -> None:
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()


class OtlpSpan:
    """See `cluster.telemetry.tracing.Span`."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self.traceparent = _traceparent(span)

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:
        context = trace.set_span_in_context(self._span, Context())
        return OtlpSpan(self._tracer, self._tracer.start_span(name, context, _KINDS[kind], dict(attributes)))

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def end(self, error: str = "") -> None:
        if not self._span.is_recording():
            return
        if error:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end()


def _context(traceparent: str) -> Context:
    # Always of its own: whatever another library has made current is not ours.
    return _PROPAGATOR.extract({TRACEPARENT: traceparent}, Context())


def _traceparent(span: trace.Span) -> str:
    if not span.is_recording():
        return ""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier[TRACEPARENT]
