"""Frames of the step channel: whole, in pieces, too long, cut off; both the blocking and the asyncio reader."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest

from cluster.framing import MAX_FRAME_BYTES, FrameError, FrameReader, encode_frame, read_frame

Read = Callable[[bytes, int], list[bytes]]


def read_blocking(data: bytes, limit: int) -> list[bytes]:
    ours, theirs = socket.socketpair()
    with ours:
        sender = threading.Thread(target=_send_slowly, args=(theirs, data))
        sender.start()
        reader = FrameReader(ours, limit)
        try:
            return list(iter(reader.read, None))
        finally:
            ours.close()
            sender.join()


def _send_slowly(connection: socket.socket, data: bytes) -> None:
    with connection:
        for start in range(0, len(data), 7):
            try:
                connection.sendall(data[start : start + 7])
            except OSError:
                return


def read_async(data: bytes, limit: int) -> list[bytes]:
    async def main() -> list[bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        frames = []
        while (frame := await read_frame(reader, limit)) is not None:
            frames.append(frame)
        return frames

    return asyncio.run(main())


@pytest.fixture(params=[read_blocking, read_async])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param


def test_frames_come_back_whole_and_in_order(read: Read) -> None:
    payloads = [b"", b"a", b"bc" * 100, bytes(5000)]
    assert read(b"".join(map(encode_frame, payloads)), 5000) == payloads


def test_the_length_is_little_endian() -> None:
    assert encode_frame(b"abc") == b"\x03\x00\x00\x00abc"


def test_a_frame_over_the_limit_is_refused_before_it_is_read(read: Read) -> None:
    with pytest.raises(FrameError, match="100 bytes; at most 99"):
        read(encode_frame(bytes(100))[:4], 99)


@pytest.mark.parametrize("cut", [1, 3, 4, 10])
def test_an_end_inside_a_frame_is_not_an_end_between_frames(read: Read, cut: int) -> None:
    frame = encode_frame(bytes(20))
    with pytest.raises(FrameError, match="inside a frame"):
        read(encode_frame(b"whole") + frame[:cut], 1000)


def test_nobody_sends_what_nobody_would_accept() -> None:
    with pytest.raises(FrameError):
        encode_frame(bytes(MAX_FRAME_BYTES + 1))
