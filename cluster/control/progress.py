"""How far replicas are with their start, and how long it will take. Knows what ranks said and when; asks nobody.

An estimate goes by the bytes that a rank has still to read at the pace it reads them, and, for phases that have no
bytes, by how long they took the ranks of this model before. Where there is nothing to go by there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from argosy.internal.v1 import control_pb2
from cluster.control.reconcile import Record

PHASES = ("starting", "importing", "loading", "warming")
"""Of a rank's start, in order; then it is `ready`."""
READY = "ready"

_RankKey = tuple[str, int, int, int]
"""Replica, epoch, stage, tensor rank."""


class ProgressBook:
    """Remembers since when each rank is in its phase, and how long phases took."""

    def __init__(self) -> None:
        self._entered: dict[_RankKey, tuple[str, float]] = {}
        self._took: dict[str, dict[str, float]] = {}
        """By model and phase: the longest of the last whole start."""

    def progress(self, status: control_pb2.ReplicaStatus, record: Record, now: float) -> control_pb2.ReplicaProgress:
        """One replica as of `now`."""
        is_ready = status.state in (control_pb2.REPLICA_STATE_READY, control_pb2.REPLICA_STATE_DRAINING)
        if is_ready:
            self._learn(status)
        loading = status.state == control_pb2.REPLICA_STATE_LOADING
        told = control_pb2.ReplicaProgress(
            status=status,
            ranks_ready=sum(rank.phase == READY for rank in status.ranks),
            loaded_bytes=sum(rank.loaded_bytes for rank in status.ranks),
            total_bytes=sum(rank.total_bytes for rank in status.ranks),
            elapsed_seconds=now - record.since if loading else 0.0,
            phase=_least_far(status.ranks),
        )
        remaining = [self._remaining(status, rank, now) for rank in status.ranks] if loading else []
        known = [seconds for seconds in remaining if seconds is not None]
        if known and len(known) == len(remaining):
            told.remaining_seconds = max(known)
        return told

    def _learn(self, status: control_pb2.ReplicaStatus) -> None:
        entered = [key for key in self._entered if key[0] == status.replica_id]
        if entered or status.model not in self._took:
            took = {phase: max((rank.phase_seconds[phase] for rank in status.ranks), default=0.0) for phase in PHASES}
            self._took[status.model] = took
        for key in entered:
            del self._entered[key]

    def _remaining(self, status: control_pb2.ReplicaStatus, rank: control_pb2.RankStatus, now: float) -> float | None:
        """Seconds until a rank is ready; None if there is nothing to go by."""
        if rank.phase == READY:
            return 0.0
        if rank.phase not in PHASES:
            return None
        key = (status.replica_id, status.epoch, rank.stage, rank.tensor_rank)
        phase, since = self._entered.get(key, ("", now))
        if phase != rank.phase:
            since = now
            self._entered[key] = (rank.phase, now)
        took = self._took.get(status.model)
        later = sum(took[phase] for phase in PHASES[PHASES.index(rank.phase) + 1 :]) if took else 0.0
        spent = now - since
        if rank.phase == "loading" and rank.loaded_bytes and spent:
            return later + spent * (rank.total_bytes - rank.loaded_bytes) / rank.loaded_bytes
        return later + max(0.0, took[rank.phase] - spent) if took else None


def _least_far(ranks: Sequence[control_pb2.RankStatus]) -> str:
    order = [*PHASES, READY]
    return min((rank.phase for rank in ranks if rank.phase in order), key=order.index, default="")
