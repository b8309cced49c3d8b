"""Spans as the rest of the program sees them, and the ones that record nothing. Knows no OpenTelemetry.

`cluster.telemetry.otlp` records and sends them; it is imported only where a collector is configured. A span's context
travels as a W3C `traceparent`: in the metadata of a client's call, and inside a request from router to replica, whose
many requests share one call. No span carries a prompt, an answer or a credential.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Literal, Protocol

from cluster.config import TracesConfig
from cluster.errors import ConfigurationError

Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int | float]

TRACEPARENT = "traceparent"
"""The header, as https://www.w3.org/TR/trace-context names it."""


class Span(Protocol):
    """Something that takes time. A second `end` is ignored."""

    @property
    def traceparent(self) -> str:
        """Its context for whoever goes on elsewhere; empty if it is not recorded."""

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:
        """A part of it that begins now."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def event(self, name: str) -> None:
        """Something happened."""

    def end(self, error: str = "") -> None:
        """It is over; `error`: why it failed, one line."""


class Tracer(Protocol):
    """Makes spans."""

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
        """A span under `parent`, a traceparent; without a valid one, the sampler decides whether it is recorded.

        Args:
            links: traceparents of others that it serves too.
            seconds_ago: when it began.
        """

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""


class NoSpan:
    """Records nothing."""

    traceparent = ""

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:
        return self

    def set(self, attributes: Attributes) -> None:
        """Nothing."""

    def event(self, name: str) -> None:
        """Nothing."""

    def end(self, error: str = "") -> None:
        """Nothing."""


class NoTracer:
    """Records nothing."""

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
        return NO_SPAN

    def close(self) -> None:
        """Nothing."""


NO_SPAN = NoSpan()
_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


def current_span() -> Span:
    """The span of the call being handled."""
    return _current.get()


def set_span(span: Span) -> None:
    """Make it the span of the call that this task handles."""
    _current.set(span)


def traceparent_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The caller's trace context; empty if it sent none."""
    return next((str(value) for key, value in metadata or () if key == TRACEPARENT), "")


def open_tracer(config: TracesConfig, service: str, attributes: Attributes) -> Tracer:
    """The configured tracer; call its `close` at the end.

    Args:
        service: what kind of process this is.
        attributes: of all its spans.

    Raises:
        ConfigurationError: a collector is configured, and what sends to it is not installed.
    """
    if config.endpoint is None:
        return NoTracer()
    try:
        from cluster.telemetry.otlp import OtlpTracer
    except ImportError as error:
        raise ConfigurationError(
            f"traces.endpoint: {error.name} is not installed; run `pip install argosy[traces]`, or remove the key"
        ) from None
    return OtlpTracer(config, service, attributes)
