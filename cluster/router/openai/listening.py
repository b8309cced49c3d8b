"""Opens the HTTP door on a port, encrypted or not. Knows sockets and certificates; no routes."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from cluster.config import TlsConfig
from cluster.errors import ConfigurationError

log = logging.getLogger(__name__)

CLOSE_SECONDS = 1.0
"""For open connections, once the router has drained."""


@asynccontextmanager
async def opened(
    application: web.Application, key: str, address: str, tls: TlsConfig | None, *, share_port: bool = False
) -> AsyncIterator[str]:
    """Listen within the block; yields the host:port in use.

    Args:
        key: of the configuration that holds the address, for errors.
        tls: None does not encrypt.
        share_port: several processes may listen on one port.

    Raises:
        ConfigurationError: the port or the certificate cannot be used.
    """
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    try:
        yield await _listen(runner, key, address, tls, share_port)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, key: str, address: str, tls: TlsConfig | None, share_port: bool) -> str:
    host, _, port = address.rpartition(":")
    site = web.TCPSite(
        runner,
        host.strip("[]"),
        int(port),
        ssl_context=_ssl(tls) if tls else None,
        reuse_port=share_port or None,
    )
    try:
        await site.start()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"{key}: cannot listen on {address}: {reason}") from None
    return f"{host}:{runner.addresses[0][1]}"


def _ssl(tls: TlsConfig) -> ssl.SSLContext:
    """A context for new connections that takes up changed files."""
    seen, context = _stamp(tls), _context(tls)

    def renew(connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        nonlocal seen, context
        try:
            if (now := _stamp(tls)) != seen:
                seen, context = now, _context(tls)
        except (OSError, ConfigurationError) as error:
            log.warning("the certificate is kept: %s", error)
        connection.context = context

    first = context
    first.sni_callback = renew
    return first


def _stamp(tls: TlsConfig) -> tuple[int, ...]:
    files = (tls.certificate, tls.key, tls.client_authority)
    return tuple(file.stat().st_mtime_ns for file in files if file is not None)


def _context(tls: TlsConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_authority is not None:
            context.load_verify_locations(tls.client_authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigurationError(f"router.tls: {tls.certificate}: {error}") from None
    return context
