"""Tokens that replicas gave to routers, over all their epochs. Knows counts; no engines.

An engine counts for itself and its count ends with it. What is kept here is what `argosy usage --reconcile` holds the
ledger against.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.ids import Epoch, ReplicaId


@dataclass(slots=True)
class _Count:
    epoch: Epoch
    tokens: int = 0
    """Of the epoch, when it was last heard of."""
    before: int = 0
    """Of earlier epochs."""
    lost_epochs: int = 0


class Delivered:
    """One controller's counts."""

    def __init__(self) -> None:
        self._counts: dict[ReplicaId, _Count] = {}

    def hear(self, replica_id: ReplicaId, epoch: Epoch, tokens: int) -> None:
        """An engine told its count. One that a controller adopted has counted before; so did its routers."""
        count = self._counts.setdefault(replica_id, _Count(epoch))
        if epoch != count.epoch:
            count.before += count.tokens
            count.lost_epochs += 1
            count.epoch = epoch
        count.tokens = tokens

    def total(self, replica_id: ReplicaId) -> tuple[int, int]:
        """Tokens of all epochs, and how many epochs ended without a last word."""
        count = self._counts.get(replica_id)
        return (count.before + count.tokens, count.lost_epochs) if count else (0, 0)
