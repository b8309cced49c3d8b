"""How the client reaches a router: channel options, credentials, metadata. Knows gRPC; no requests."""

from __future__ import annotations

from collections.abc import Sequence

Metadata = tuple[tuple[str, str], ...]

OPTIONS: list[tuple[str, int]] = [
    # A router that stands still keeps its sockets open: only unanswered pings tell. Routers allow one in 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Streams are resumed, not retried, and that is this package's work.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]

TLS_PREFIX = "tls://"
DEFAULT_TIMEOUT_SECONDS = 600.0


def addresses_of(routers: str | Sequence[str]) -> list[str]:
    """Addresses as a list; one string may hold several, with commas between them.

    Raises:
        ValueError: there is none.
    """
    given = routers.split(",") if isinstance(routers, str) else list(routers)
    addresses = [address.strip() for address in given if address.strip()]
    if not addresses:
        raise ValueError("routers: at least one address is needed, host:port or tls://host:port")
    return addresses


def metadata_of(api_key: str | None) -> Metadata:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
