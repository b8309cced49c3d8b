"""TLS over a connected socket for one thread that reads and any that write. Knows bytes and locks; no frames.

`ssl.SSLSocket` must not be used by two threads at once, and one that waits in `recv` would keep others from sending.
Here the cipher is locked while it computes, and nobody waits for the network with it.
"""

from __future__ import annotations

import socket
import ssl
import threading

_CHUNK = 65536


class TlsSocket:
    """The client's end of an encrypted connection; the server has proved its name once this is made."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        """
        Raises:
            OSError: the server is not who it should be, or hung up.
        """
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._cipher = threading.Lock()
        self._sending = threading.Lock()
        """Held from making records until they are sent, so that they leave in order."""
        self._shake_hands()

    def recv(self, size: int) -> bytes:
        """At least one byte, at most `size`; none if the peer ended. For one thread only.

        Raises:
            OSError: the connection broke, or what came was not the peer's.
        """
        while True:
            with self._cipher:
                try:
                    data: bytes | None = self._tls.read(size)
                except ssl.SSLWantReadError:
                    data = None
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    data = b""
            self._answer()
            if data is not None:
                return data
            self._receive()

    def sendall(self, data: bytes) -> None:
        """Send everything; any thread may.

        Raises:
            OSError: the connection broke.
        """
        with self._sending:
            with self._cipher:
                self._tls.write(data)
            self._flush()

    def _answer(self) -> None:
        """Send what the protocol itself has to say, such as that it takes a new key.

        Never waits for those who send: the peer may read nothing more until we have read.
        """
        if self._outgoing.pending and self._sending.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._sending.release()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            else:
                return self._flush()

    def _receive(self) -> None:
        received = self._connection.recv(_CHUNK)
        with self._cipher:
            if received:
                self._incoming.write(received)
            else:
                self._incoming.write_eof()

    def _flush(self) -> None:
        """Send what the cipher has made."""
        with self._cipher:
            waiting = self._outgoing.read()
        if waiting:
            self._connection.sendall(waiting)
