"""Opens channels and servers with the one set of gRPC options; knows no services and no statuses."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import grpc
import grpc.aio

from cluster.errors import ConfigurationError
from cluster.rpc.guard import CallGuard

Options = list[tuple[str, int | str]]

INTERNAL_MESSAGE_BYTES = 64 * 1024 * 1024
"""A step report of thousands of streams with log probabilities stays below this."""


class Link(enum.Enum):
    """Between whom a connection runs: it decides how soon silence counts as death."""

    INTERNAL = "internal"
    """Between Argosy's own processes."""
    PUBLIC = "public"
    """Between a client, perhaps on a phone, and a router."""


MAX_STREAMS_OF_A_CONNECTION = 1024
"""Calls at once on one public connection; a client that wants more waits, or opens another."""
IDLE_SECONDS = 900
"""A public connection without calls is closed."""
_HANDSHAKE_SECONDS = {Link.INTERNAL: 5.0, Link.PUBLIC: 10.0}
"""By then a connection has shaken hands, TLS and HTTP/2."""

_PING_SECONDS = {Link.INTERNAL: 1.0, Link.PUBLIC: 20.0}
_PING_TIMEOUT_SECONDS = {Link.INTERNAL: 1.0, Link.PUBLIC: 10.0}


def _keepalive(link: Link) -> Options:
    ping = int(_PING_SECONDS[link] * 1000)
    timeout = int(_PING_TIMEOUT_SECONDS[link] * 1000)
    return [
        ("grpc.keepalive_time_ms", ping),
        ("grpc.keepalive_timeout_ms", timeout),
        # grpcio 1.85 waits for this one, a minute by default, whatever keepalive_timeout_ms says.
        ("grpc.http2.ping_timeout_ms", timeout),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _sizes(max_receive: int, max_send: int) -> Options:
    return [("grpc.max_receive_message_length", max_receive), ("grpc.max_send_message_length", max_send)]


def channel(
    address: str,
    *,
    link: Link = Link.INTERNAL,
    max_receive: int = INTERNAL_MESSAGE_BYTES,
    max_send: int = INTERNAL_MESSAGE_BYTES,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str | None = None,
) -> grpc.aio.Channel:
    """A channel to `address` (host:port); it connects on first use and reconnects by itself.

    Args:
        link: `Link.PUBLIC` towards a router's public port, which refuses frequent pings.
        max_receive: largest message accepted, in bytes.
        max_send: largest message sent, in bytes.
        credentials: of TLS (`cluster.rpc.tls`); None does not encrypt.
        server_name: what the server's certificate must be issued for; default: the host in `address`.
    """
    reconnect: Options = [
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Without this, channels to one address share one connection, and one's flow control is the other's.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    options = _keepalive(link) + _sizes(max_receive, max_send) + reconnect
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options=options)
    return grpc.aio.insecure_channel(address, options=options)


def server(
    *,
    link: Link = Link.INTERNAL,
    default_deadline: float | None = None,
    max_receive: int = INTERNAL_MESSAGE_BYTES,
    max_send: int = INTERNAL_MESSAGE_BYTES,
    share_port: bool = False,
    max_connections: int | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """A server without services; `listen` binds it.

    Args:
        link: who calls. `Link.PUBLIC` ends connections that ping more than every 5 s.
        default_deadline: seconds that a call without a deadline gets; None where calls may last for ever.
        max_receive: largest request, in bytes; a larger one is answered REQUEST_TOO_LARGE.
        max_send: largest response, in bytes.
        share_port: several processes may listen on one port (SO_REUSEPORT). Otherwise a port in use is an error.
        max_connections: more are closed as they come; None has no such bound.
        interceptors: run inside the guard, in this order.
    """
    # The guard refuses with details what is somewhat too large; the transport cuts what is far too large unread.
    options = _keepalive(link) + _sizes(2 * max_receive, max_send)
    options += [
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.http2.min_ping_interval_without_data_ms", 200 if link is Link.INTERNAL else 5000),
        ("grpc.http2.max_ping_strikes", 0 if link is Link.INTERNAL else 2),
        # A reader that stops must hold up its writer soon: buffer little on our side of the socket.
        ("grpc.http2.write_buffer_size", 16 * 1024),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE_SECONDS[link] * 1000)),
    ]
    if link is Link.PUBLIC:
        options += [
            ("grpc.max_concurrent_streams", MAX_STREAMS_OF_A_CONNECTION),
            ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        ]
    if max_connections is not None:
        options.append(("grpc.max_allowed_incoming_connections", max_connections))
    guard = CallGuard(default_deadline=default_deadline, max_request_bytes=max_receive)
    return grpc.aio.server(interceptors=[guard, *interceptors], options=options)


def listen(target: grpc.aio.Server, address: str, key: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Bind a server before it starts.

    Args:
        address: host:port; port 0 takes a free one.
        key: the configuration key that holds the address, for the error.
        credentials: of TLS (`cluster.rpc.tls`); None does not encrypt.

    Returns:
        host:port with the port in force.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    host = address.rpartition(":")[0]
    try:
        port = target.add_secure_port(address, credentials) if credentials else target.add_insecure_port(address)
    except RuntimeError:
        raise ConfigurationError(
            f"{key}: cannot listen on {address} (in use, or not this machine's address); free it or choose another port"
        ) from None
    return f"{host}:{port}"
