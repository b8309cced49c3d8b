"""The port that Prometheus scrapes: /metrics, and on the controller /targets. Knows HTTP, no metric by name.

The standard library's server, a thread a connection: a scrape every few seconds needs no more, and it shares no loop
with requests. Whoever reaches the port sees models, tenants and load, so it is on loopback unless told otherwise.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
"""How long the end of the server may take to be noticed."""

Targets = Callable[[], list[dict[str, Any]]]
"""What Prometheus' HTTP service discovery reads: [{"targets": ["host:port"], "labels": {...}}]."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Two processes on one port would each answer some scrapes.
    allow_reuse_port = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away, or a stranger who said nothing."""
        logger.debug("metrics: %s: %r", client_address, sys.exception() or "gone")


class _ServerOnIPv6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10.0
    """Seconds that a connection may say nothing: each holds a thread."""

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no news."""

    def address_string(self) -> str:
        return str(self.client_address[0])  # no reverse lookup: it can take seconds


@contextlib.contextmanager
def exported(
    registry: CollectorRegistry, address: str | None, key: str, targets: Targets | None = None
) -> Iterator[str | None]:
    """Serve a registry while the block runs; yields host:port, None if `address` is.

    A port that is taken is no reason not to serve requests: a free one is used instead, and the log says so.

    Args:
        address: host:port; None exports nothing.
        key: the configuration key that holds it, for the log.
        targets: served as JSON under /targets.
    """
    if address is None:
        yield None
        return
    host, _, port = address.rpartition(":")
    server = _listen(host.strip("[]"), int(port), _application(registry, targets), key)
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reachable(address: str | None, host: str) -> str:
    """What others call an address that `exported` gave: `host` where it listens everywhere; empty for None."""
    if address is None:
        return ""
    listens_at, _, port = address.rpartition(":")
    try:
        is_everywhere = ipaddress.ip_address(listens_at.strip("[]")).is_unspecified
    except ValueError:
        is_everywhere = False
    return f"{host}:{port}" if is_everywhere else address


def _listen(host: str, port: int, application: Any, key: str) -> WSGIServer:
    kind = _ServerOnIPv6 if ":" in host else _Server
    try:
        return make_server(host, port, application, kind, _Quiet)
    except OSError as error:
        server = make_server(host, 0, application, kind, _Quiet)
        logger.warning("%s: %s:%d: %s; using port %d", key, host, port, error.strerror, server.server_port)
        return server


def _application(registry: CollectorRegistry, targets: Targets | None) -> Any:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series a counter, which nothing here asks for
    metrics = make_wsgi_app(registry)

    def application(environment: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environment, start_response)  # type: ignore[no-any-return]
        if path == "/targets" and targets is not None:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(targets()).encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics\n"]

    return application
