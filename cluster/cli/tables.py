"""Tables of plans and of replicas. Rendering only: what is shown was decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from argosy.internal.v1 import control_pb2
from cluster.cli.terminal import human_bytes
from cluster.control.plan import RankPlan, ReplicaPlan

_STATE_STYLES = {
    control_pb2.REPLICA_STATE_READY: "green",
    control_pb2.REPLICA_STATE_FAILED: "red",
    control_pb2.REPLICA_STATE_PENDING: "yellow",
    control_pb2.REPLICA_STATE_LOADING: "cyan",
}


def plan_table(plan: ReplicaPlan) -> Table:
    """One row a rank: where it runs and what it will hold."""
    dims = plan.dims
    table = Table(
        title=f"{plan.replica_id}: tensor {dims.tp} × pipeline {dims.pp}, {plan.dtype} on {plan.device}",
        caption=(
            f"{plan.collectives} collectives, {plan.threads_per_rank} thread(s) a rank, "
            f"context {plan.context_length:,} tokens"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("stage", "rank", "node", "device"):
        table.add_column(name)
    for name in ("layers", "query heads", "KV heads", "weights", "KV cache", "KV tokens"):
        table.add_column(name, justify="right")
    for rank in plan.ranks:
        table.add_row(*_rank_cells(plan, rank))
    return table


def _rank_cells(plan: ReplicaPlan, rank: RankPlan) -> list[str]:
    shard = rank.shard
    return [
        str(shard.coordinates.stage),
        str(shard.coordinates.tp_rank),
        rank.node.host,
        rank.device,
        span(shard.layers.start, shard.layers.end),
        span(shard.heads.query_heads.start, shard.heads.query_heads.end),
        span(shard.heads.kv_heads.start, shard.heads.kv_heads.end),
        human_bytes(rank.weight_bytes),
        human_bytes(rank.kv_bytes),
        f"{plan.kv_tokens:,}",
    ]


def span(start: int, end: int) -> str:
    """A half-open range as people count: `0–14` for [0, 15)."""
    if end - start <= 1:
        return str(start) if end > start else "–"
    return f"{start}–{end - 1}"


def status_table(replicas: Iterable[control_pb2.ReplicaStatus]) -> Table:
    """One row a rank, with its replica's state on the first."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("replica", "state", "stage", "rank", "node", "device", "pid", "layers", "heads", "phase"):
        table.add_column(name)
    table.add_column("weights", justify="right")
    table.add_column("", width=16)
    for replica in replicas:
        name = control_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_").lower()
        state = Text(f"{name} (epoch {replica.epoch})", style=_STATE_STYLES.get(replica.state, ""))
        if not replica.ranks:
            table.add_row(replica.replica_id, state)
        for index, rank in enumerate(replica.ranks):
            first = index == 0
            table.add_row(replica.replica_id if first else "", state if first else "", *_live_cells(rank))
        if replica.reason:
            failed = replica.state == control_pb2.REPLICA_STATE_FAILED
            table.add_row("", Text(replica.reason, style="red" if failed else "dim"))
    return table


def _live_cells(rank: control_pb2.RankStatus) -> Sequence[str | ProgressBar]:
    loaded, total = rank.loaded_bytes, rank.total_bytes
    weights = human_bytes(total) if loaded >= total else f"{human_bytes(loaded)} of {human_bytes(total)}"
    return [
        str(rank.stage),
        str(rank.tensor_rank),
        rank.node,
        rank.device,
        str(rank.pid or ""),
        span(rank.start_layer, rank.end_layer),
        f"{rank.query_heads}q {rank.kv_heads}kv",
        rank.phase,
        weights if total else "",
        ProgressBar(total=max(1, total), completed=loaded, width=16) if loaded < total else "",
    ]
