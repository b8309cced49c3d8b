"""What waits to be sent to one router. Knows deltas and how to merge them; knows no gRPC.

A router that reads slowly gets fewer, larger reports: news of one choice is merged, so what is held never exceeds the
tokens of its live requests, which their credits bound.
"""

from __future__ import annotations

import asyncio

from argosy.internal.v1 import replica_pb2
from cluster.errors import ServiceError
from cluster.replica.prefix_log import BlockNews


class Connection:
    """One router's stream, as the engine sees it."""

    def __init__(self, connection_id: int, router_id: str, blocks: BlockNews | None = None) -> None:
        """
        Args:
            blocks: what the prefix cache does, for a router that wants to know.
        """
        self.connection_id = connection_id
        self.router_id = router_id
        self.blocks = blocks
        self._probe: int | None = None
        self.ended_with: ServiceError | None = None
        """Set when the engine ends the stream; what is pending is still sent."""
        self._deltas: dict[tuple[int, int], replica_pb2.TokenDelta] = {}
        self._awake = asyncio.Event()

    @property
    def has_news(self) -> bool:
        return bool(self._deltas)

    def add(self, delta: replica_pb2.TokenDelta) -> None:
        """Keep a delta for the next report."""
        key = (delta.stream_id, delta.choice)
        waiting = self._deltas.get(key)
        if waiting is None:
            self._deltas[key] = delta
        else:
            merge(waiting, delta)
        self._awake.set()

    def forget(self, stream_id: int) -> None:
        """Nothing more is to be sent for a request."""
        for key in [key for key in self._deltas if key[0] == stream_id]:
            del self._deltas[key]

    def take(self) -> list[replica_pb2.TokenDelta]:
        """Everything that waits, in the order in which it began to."""
        deltas = list(self._deltas.values())
        self._deltas.clear()
        return deltas

    def probed(self, number: int) -> None:
        """The router wants to know how long an answer takes."""
        self._probe = number
        self._awake.set()

    def take_probe(self) -> int | None:
        """The newest probe that is to be answered."""
        probe, self._probe = self._probe, None
        return probe

    def end(self, error: ServiceError) -> None:
        """The engine is done with this router."""
        self.ended_with = error
        self._awake.set()

    async def wait(self, timeout_seconds: float) -> None:
        """Until there is news, or an end, or `timeout_seconds` have passed."""
        timer = asyncio.get_running_loop().call_later(timeout_seconds, self._awake.set)
        try:
            await self._awake.wait()
        finally:
            timer.cancel()
            self._awake.clear()


def merge(waiting: replica_pb2.TokenDelta, delta: replica_pb2.TokenDelta) -> None:
    """Append `delta`, which follows `waiting` in the same choice."""
    if not waiting.token_ids:
        waiting.first_index = delta.first_index
    waiting.token_ids.extend(delta.token_ids)
    waiting.logprobs.extend(delta.logprobs)
    waiting.cached_prompt_tokens = waiting.cached_prompt_tokens or delta.cached_prompt_tokens
    waiting.device_seconds += delta.device_seconds
    if delta.end:
        waiting.end = delta.end
        waiting.detail = delta.detail
        waiting.suspect = delta.suspect
