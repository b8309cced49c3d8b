"""A collector that keeps what it is sent: OTLP's trace service over gRPC, as OpenTelemetry defines it."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: tuple[str, ...]
    error: str
    seconds: float
    links: tuple[str, ...]


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Everything received so far."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    raw: bytes = b""
    address: str = ""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        self.raw += request.SerializeToString()
        for resource in request.resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_received(span, about) for span in scope.spans]
        return wire.ExportTraceServiceResponse()

    def named(self, prefix: str) -> list[ReceivedSpan]:
        return [span for span in list(self.spans) if span.name.startswith(prefix)]


def _received(span: Any, about: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        service=about["service.name"],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=about | _values(span.attributes),
        events=tuple(event.name for event in span.events),
        error=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else "",
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        links=tuple(link.span_id.hex() for link in span.links),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in attributes}


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
