"""Accepts the connections of a step channel: how many strangers at once, plain or TLS. Knows sockets; no messages.

A stranger counts from the moment it is accepted, so half-open handshakes cost no more than silent plain connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.errors import ConfigurationError
from cluster.peers import Identity, Role, roles_of_certificate

HANDSHAKE_SECONDS = 5.0
"""By then a peer has proved itself, or is hung up on."""
MAX_STRANGERS = 64
"""Connections that have not proved themselves yet; more are closed unread."""
_PAUSE_SECONDS = 0.5
"""After the system had no descriptor left for a connection."""

logger = logging.getLogger(__name__)

Welcome = Callable[["Stranger"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Stranger:
    """One connection, which counts as a stranger's until `admitted` is called or it ends."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    admitted: Callable[[], None]


class Listener:
    """One listening socket."""

    def __init__(self, identity: Identity, welcome: Welcome) -> None:
        """`welcome` serves one connection from its first byte to its last."""
        self._identity = identity
        self._welcome = welcome
        self._strangers: set[asyncio.Task[None]] = set()
        self._guests: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def start(self, host: str) -> str:
        """Listen on a free port of `host`; its host:port.

        Raises:
            ConfigurationError: it would speak plain text where others can listen, or the certificates cannot be used.
        """
        self._identity.check_exposure(f"{host}:0", "peers")
        try:
            self._identity.server_context()
        except OSError as error:
            raise ConfigurationError(f"peers: {self._identity.files}: {error}") from None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host.strip("[]"), 0), family=family)
        self._socket.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._socket))
        return f"{host}:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        """Take nobody in any more, and hang up on whoever has not proved itself. Guests stay."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._socket is not None:
            self._socket.close()
        for task in self._strangers:
            task.cancel()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                logger.warning("step channel: cannot accept: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if len(self._strangers) >= MAX_STRANGERS:
                connection.close()
                continue
            task = loop.create_task(self._serve(connection))
            self._strangers.add(task)
            task.add_done_callback(self._strangers.discard)
            task.add_done_callback(self._guests.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            reader, writer = await self._open(connection)
        except (OSError, TimeoutError) as error:
            logger.warning("step channel: connection refused: %s", error or type(error).__name__)
            return
        task = asyncio.current_task()
        assert task is not None

        def admitted() -> None:
            self._strangers.discard(task)
            self._guests.add(task)

        try:
            await self._welcome(Stranger(reader, writer, admitted))
        finally:
            writer.transport.abort()

    async def _open(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """
        Raises:
            OSError: the peer is no worker of ours.
        """
        loop = asyncio.get_running_loop()
        try:
            context = self._identity.server_context()
        except OSError:
            connection.close()
            raise
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        timeout = HANDSHAKE_SECONDS if context else None
        # From here on the socket is the transport's, which closes it whatever happens.
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=context, ssl_handshake_timeout=timeout
        )
        if context is not None and Role.WORKER not in roles_of_certificate(transport.get_extra_info("peercert")):
            transport.close()
            raise ssl.SSLError("the certificate is no worker's")
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
