"""What routers and operators are told of a replica: the record, the plan and the engine's own words joined. Pure."""

from __future__ import annotations

from argosy.internal.v1 import control_pb2
from cluster.control.plan import ReplicaPlan, WantedReplica
from cluster.control.reconcile import Phase, Record

_STATES = {
    Phase.PENDING: control_pb2.REPLICA_STATE_PENDING,
    Phase.STARTING: control_pb2.REPLICA_STATE_LOADING,
    Phase.READY: control_pb2.REPLICA_STATE_READY,
    Phase.FAILED: control_pb2.REPLICA_STATE_FAILED,
    Phase.DRAINING: control_pb2.REPLICA_STATE_DRAINING,
    Phase.RESTING: control_pb2.REPLICA_STATE_PENDING,
}


def replica_status(
    record: Record,
    wanted: WantedReplica,
    plan: ReplicaPlan | None,
    told: control_pb2.ReplicaStatus | None,
) -> control_pb2.ReplicaStatus:
    """One replica. The controller's phase decides the state; only a draining engine is believed over it."""
    state = _STATES[record.phase]
    if told is not None and record.phase is Phase.READY and told.state == control_pb2.REPLICA_STATE_DRAINING:
        state = control_pb2.REPLICA_STATE_DRAINING
    # While it loads, an engine's reason only repeats the phases of its ranks.
    told_reason = told.reason if told and state != control_pb2.REPLICA_STATE_LOADING else ""
    status = control_pb2.ReplicaStatus(
        replica_id=record.replica_id,
        model=wanted.section.name,
        epoch=record.epoch,
        state=state,
        reason=record.reason or told_reason,
        ranks=_ranks(plan, told),
    )
    if told is not None:
        status.address = told.address
        status.metrics_address = told.metrics_address
        status.active_seconds = told.active_seconds
        if told.HasField("load"):
            status.load.CopyFrom(told.load)
        if told.HasField("coefficients"):
            status.coefficients.CopyFrom(told.coefficients)
        if told.HasField("prefixes"):
            status.prefixes.CopyFrom(told.prefixes)
    return status


def directory_entry(status: control_pb2.ReplicaStatus) -> control_pb2.DirectoryEntry:
    """What routers need of a replica that takes requests."""
    entry = control_pb2.DirectoryEntry(
        replica_id=status.replica_id, model=status.model, address=status.address, epoch=status.epoch
    )
    if status.HasField("load"):
        entry.load.CopyFrom(status.load)
    if status.HasField("coefficients"):
        entry.coefficients.CopyFrom(status.coefficients)
    if status.HasField("prefixes"):
        entry.prefixes.CopyFrom(status.prefixes)
    return entry


def _ranks(plan: ReplicaPlan | None, told: control_pb2.ReplicaStatus | None) -> list[control_pb2.RankStatus]:
    """The plan's ranks, overlaid with what the engine has heard from each."""
    heard = {(rank.stage, rank.tensor_rank): rank for rank in told.ranks} if told else {}
    if plan is None:
        return list(heard.values())
    ranks = []
    for planned in plan.ranks:
        shard = planned.shard
        rank = control_pb2.RankStatus(
            stage=shard.coordinates.stage,
            tensor_rank=shard.coordinates.tp_rank,
            node=planned.node.host,
            device=planned.device,
            start_layer=shard.layers.start,
            end_layer=shard.layers.end,
            query_heads=shard.heads.query_heads.size,
            kv_heads=shard.heads.kv_heads.size,
            phase="starting",
            total_bytes=planned.weight_bytes,
        )
        if (news := heard.get((rank.stage, rank.tensor_rank))) is not None:
            rank.MergeFrom(news)
        ranks.append(rank)
    return ranks
