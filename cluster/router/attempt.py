"""One request at one replica: what has arrived and was not yet taken. Knows its window; no connection, no positions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from argosy.internal.v1 import replica_pb2
from cluster.clock import Clock
from cluster.ids import Epoch, RegionId, ReplicaId, StreamId

WINDOW_TOKENS = 256
"""Tokens of one request that may be on their way or unread here; beyond, its replica pauses it."""


class ReplicaLostError(Exception):
    """The request cannot go on at this replica; it can at another."""


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Which replica to connect to, as the directory says."""

    replica_id: ReplicaId
    address: str
    epoch: Epoch
    region: RegionId


class Carrier(Protocol):
    """The connection that a request travels on."""

    @property
    def target(self) -> ReplicaAddress: ...
    @property
    def clock(self) -> Clock: ...
    def credit(self, stream_id: StreamId, tokens: int) -> None:
        """Widen a request's window."""

    def forget(self, stream_id: StreamId, *, tell: bool) -> None:
        """Drop what still arrives for a request, and `tell` the replica to give it up."""


class Attempt:
    """One request at one replica: what has arrived and was not yet taken, never more than its window."""

    def __init__(self, stream_id: StreamId, connection: Carrier) -> None:
        self.stream_id = stream_id
        self._connection = connection
        self._deltas: list[replica_pb2.TokenDelta] = []
        self._unread = 0
        self._unreturned = 0
        self._lost: str | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def target(self) -> ReplicaAddress:
        return self._connection.target

    @property
    def is_paused(self) -> bool:
        """True if the replica owes nothing: the window is full."""
        return self._unread + self._unreturned >= WINDOW_TOKENS

    async def take(self, linger: float = 0.0) -> list[replica_pb2.TokenDelta]:
        """Everything that has arrived, at least one delta.

        Args:
            linger: seconds to wait for more after the first.

        Raises:
            ReplicaLostError: the replica died, and all that came before is taken.
        """
        while not self._deltas:
            if self._lost is not None:
                raise ReplicaLostError(self._lost)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if linger:
            await self._connection.clock.sleep(linger)
        deltas, self._deltas = self._deltas, []
        self._unreturned += self._unread
        self._unread = 0
        return deltas

    def release(self) -> None:
        """What was taken has been passed on: the replica may send as much again."""
        # In halves of a window, so that credits cost a small share of what tokens do.
        if self._unreturned >= WINDOW_TOKENS // 2:
            self._connection.credit(self.stream_id, self._unreturned)
            self._unreturned = 0

    def close(self, *, tell: bool) -> None:
        """Nothing more is wanted; `tell` the replica unless it has ended every choice itself."""
        self._connection.forget(self.stream_id, tell=tell)

    def push(self, delta: replica_pb2.TokenDelta) -> None:
        """Called by the connection for each delta."""
        self._unread += len(delta.token_ids)
        if self._unread + self._unreturned > 2 * WINDOW_TOKENS:
            self.lose("it sent more than its credit")
            return
        self._deltas.append(delta)
        self._wake()

    def lose(self, why: str) -> None:
        """Called by the connection when it ends."""
        self._lost = why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
