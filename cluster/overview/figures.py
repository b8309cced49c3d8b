"""Two readings of a region become what an operator wants to see. Pure: statuses and times in, numbers out.

Rates hold between the readings. Where counters began anew (another epoch, a restarted engine) there is no rate until
the next reading. MFU and MBU are useful operations and bytes over what the device could have done while it was busy,
with the peaks that the rank measured at its start (docs/observability.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from argosy.internal.v1 import control_pb2, step_pb2


@dataclass(frozen=True, slots=True)
class Reading:
    """What a controller said, and when it was heard."""

    at: float
    """Monotonic seconds."""
    status: control_pb2.GetStatusResponse


@dataclass(frozen=True, slots=True)
class RankView:
    """One worker. None: not known (yet)."""

    stage: int
    tensor_rank: int
    node: str
    device: str
    phase: str
    slow: bool
    step: int
    loaded: float
    """Share of its weights that was read."""
    steps_per_second: float | None = None
    busy: float | None = None
    """Share of the time spent in passes."""
    waiting: float | None = None
    """Share of its busy time spent in collectives, waiting for slower ranks included."""
    mfu: float | None = None
    mbu: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica. None: not known (yet)."""

    replica_id: str
    model: str
    state: str
    reason: str
    epoch: int
    running: int
    waiting: int
    pending_tokens: int
    """Prompt tokens still to be computed."""
    used_blocks: int
    total_blocks: int
    ranks: Sequence[RankView] = ()
    tokens_per_second: float | None = None
    missed_per_second: float | None = None
    """Prompt tokens that had to be computed."""
    hit_share: float | None = None
    """Of prompt tokens, those found in the prefix cache; between the readings, or since the start if none came."""

    @property
    def kv_share(self) -> float:
        """Of the KV blocks, those that requests hold."""
        return self.used_blocks / self.total_blocks if self.total_blocks else 0.0


@dataclass(frozen=True, slots=True)
class RegionView:
    """One region, or why nothing is known of it."""

    name: str
    controller: str
    """host:port that was asked."""
    problem: str = ""
    routers: int = 0
    replicas: Sequence[ReplicaView] = field(default_factory=tuple)


def region_view(controller: str, before: Reading | None, now: Reading) -> RegionView:
    """A region from its latest reading, with rates since the one before."""
    status = now.status
    earlier = {replica.replica_id: replica for replica in before.status.replicas} if before else {}
    seconds = now.at - before.at if before else 0.0
    replicas = [_replica(replica, earlier.get(replica.replica_id), seconds) for replica in status.replicas]
    return RegionView(status.region, controller, routers=len(status.router_ids), replicas=replicas)


def _replica(now: control_pb2.ReplicaStatus, before: control_pb2.ReplicaStatus | None, seconds: float) -> ReplicaView:
    if before is not None and before.epoch != now.epoch:
        before = None
    missed = hit = delivered = None
    if before is not None:
        missed = _growth(now.load.missed_tokens, before.load.missed_tokens)
        hit = _growth(now.load.hit_tokens, before.load.hit_tokens)
        delivered = _growth(now.delivered_tokens, before.delivered_tokens)
    earlier = {(rank.stage, rank.tensor_rank): rank for rank in before.ranks} if before else {}
    ranks = [_rank(rank, earlier.get((rank.stage, rank.tensor_rank)), seconds) for rank in now.ranks]
    return ReplicaView(
        now.replica_id,
        now.model,
        control_pb2.ReplicaState.Name(now.state).removeprefix("REPLICA_STATE_").lower(),
        now.reason,
        now.epoch,
        now.load.running,
        now.load.waiting,
        now.load.pending_prefill_tokens,
        now.load.used_blocks,
        now.load.total_blocks,
        ranks,
        _ratio(delivered, seconds),
        _ratio(missed, seconds),
        _share(hit, missed) if hit or missed else _share(now.load.hit_tokens, now.load.missed_tokens),
    )


def _rank(now: control_pb2.RankStatus, before: control_pb2.RankStatus | None, seconds: float) -> RankView:
    view = (
        now.stage,
        now.tensor_rank,
        now.node,
        now.device,
        now.phase,
        now.slow,
        now.step,
        now.loaded_bytes / now.total_bytes if now.total_bytes else 0.0,
    )
    if before is None or before.pid != now.pid:
        return RankView(*view)
    new, old = now.figures, before.figures
    busy = _growth(_total(new, lambda phase: phase.busy_seconds), _total(old, lambda phase: phase.busy_seconds))
    flops = _growth(_total(new, lambda phase: phase.flops), _total(old, lambda phase: phase.flops))
    moved = _growth(_total(new, lambda phase: phase.memory_bytes), _total(old, lambda phase: phase.memory_bytes))
    collective = _growth(new.collective_seconds, old.collective_seconds)
    return RankView(
        *view,
        steps_per_second=_ratio(_growth(now.step, before.step), seconds),
        busy=_ratio(busy, seconds),
        waiting=_ratio(collective, busy),
        mfu=_ratio(flops, busy and busy * new.peak_flops),
        mbu=_ratio(moved, busy and busy * new.peak_bytes),
    )


def _total(figures: step_pb2.RankFigures, value: Callable[[step_pb2.PhaseFigures], float]) -> float:
    return value(figures.prefill) + value(figures.decode)


def _growth(now: float, before: float) -> float | None:
    return None if now < before else now - before


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _share(part: float | None, rest: float | None) -> float | None:
    return _ratio(part, None if part is None or rest is None else part + rest)
