"""A stream whose client does not read holds no more than its window at the router, however much its replica sends."""

from __future__ import annotations

import asyncio
import gc

import psutil
import pytest

from argosy.internal.v1 import replica_pb2
from cluster.clock import SystemClock
from cluster.ids import Epoch, RegionId, ReplicaId, StreamId
from cluster.router.attempt import WINDOW_TOKENS, Attempt, ReplicaAddress, ReplicaLostError

UNREAD_KIB = 256
"""What docs/regions.md says that an unread stream takes: a full window, a message a token."""
STREAMS = 500


class Nowhere:
    """A connection that nothing leaves."""

    target = ReplicaAddress(ReplicaId("m/0"), "127.0.0.1:1", Epoch(1), RegionId("here"))
    clock = SystemClock()

    def credit(self, stream_id: StreamId, tokens: int) -> None:
        raise AssertionError("an unread window is not widened")

    def forget(self, stream_id: StreamId, *, tell: bool) -> None:
        raise AssertionError("nobody closed it")


def delta(index: int) -> replica_pb2.TokenDelta:
    wire = replica_pb2.TokenDelta(stream_id=1, first_index=index, token_ids=[index]).SerializeToString()
    return replica_pb2.TokenDelta.FromString(wire)


def test_an_unread_stream_takes_its_window_and_no_more() -> None:
    attempts = [Attempt(StreamId(number), Nowhere()) for number in range(STREAMS)]
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    for attempt in attempts:
        for index in range(WINDOW_TOKENS):
            assert not attempt.is_paused
            attempt.push(delta(index))
        assert attempt.is_paused, "the replica owes nothing now"
    assert (process.memory_info().rss - before) / STREAMS < UNREAD_KIB * 1024


def test_a_replica_that_goes_on_beyond_the_window_is_left() -> None:
    attempt = Attempt(StreamId(1), Nowhere())
    for index in range(2 * WINDOW_TOKENS + 1):
        attempt.push(delta(index))

    async def read() -> int:
        taken = len(await attempt.take())
        with pytest.raises(ReplicaLostError, match="more than its credit"):
            await attempt.take()
        return taken

    assert asyncio.run(read()) == 2 * WINDOW_TOKENS, "what was within bounds is delivered"
