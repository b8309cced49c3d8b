"""Frames of the step channel: 4 bytes of little-endian length, then that many bytes. Knows sockets, no messages.

A length is checked before anything is read or allocated for it, so a stranger who connects costs a few bytes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, Protocol

HANDSHAKE_FRAME_BYTES: Final = 1024
"""Largest frame from a peer that has not proved itself yet."""

MAX_FRAME_BYTES: Final = 16 * 2**20
"""Largest frame afterwards: a step of 65,536 tokens with grammar masks fits."""

_LENGTH = struct.Struct("<I")


class FrameError(ConnectionError):
    """The peer sent what cannot be a frame, or ended inside one; the connection is of no further use."""


def encode_frame(payload: bytes) -> bytes:
    """Put the length before `payload`.

    Raises:
        FrameError: it is larger than any peer would accept.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return _LENGTH.pack(len(payload)) + payload


def _checked_length(header: bytes, limit: int) -> int:
    (length,) = _LENGTH.unpack(header)
    if length > limit:
        raise FrameError(f"peer announced a frame of {length} bytes; at most {limit} are allowed here")
    return int(length)


def prepare_socket(connection: socket.socket) -> None:
    """A step is one small message that somebody waits for: never hold it back for more."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_FRAME_BYTES) -> bytes | None:
    """Next frame, or None if the peer ended between frames.

    Raises:
        FrameError: too long, or cut off.
    """
    try:
        header = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("peer ended inside a frame") from None
        return None
    try:
        return await reader.readexactly(_checked_length(header, limit))
    except asyncio.IncompleteReadError:
        raise FrameError("peer ended inside a frame") from None


class Pipe(Protocol):
    """What a blocking peer reads from and writes to: a connected socket, or one with a cipher around it."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...


class FrameReader:
    """Blocking reads of frames from a connected socket, many small ones with one system call."""

    def __init__(self, connection: Pipe, limit: int = MAX_FRAME_BYTES) -> None:
        self._connection = connection
        self._limit = limit
        self._buffer = bytearray()

    def read(self) -> bytes | None:
        """Next frame, or None if the peer ended between frames.

        Raises:
            FrameError: too long, or cut off.
            OSError: the connection broke.
        """
        if not self._fill(_LENGTH.size):
            return None
        length = _checked_length(bytes(self._buffer[: _LENGTH.size]), self._limit)
        end = _LENGTH.size + length
        if not self._fill(end):
            raise FrameError("peer ended inside a frame")
        payload = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return payload

    def _fill(self, size: int) -> bool:
        """Have at least `size` bytes buffered; False if the peer ended with none."""
        while len(self._buffer) < size:
            chunk = self._connection.recv(65536)
            if not chunk:
                if self._buffer:
                    raise FrameError("peer ended inside a frame")
                return False
            self._buffer += chunk
        return True
