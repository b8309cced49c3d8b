"""Tables of plans and of replicas. Rendering only: what is shown was decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from argosy.internal.v1 import control_pb2
from cluster.cli.terminal import human_bytes
from cluster.control.plan import RankPlan, ReplicaPlan

_BAR_WIDTH = 12
_STATE_STYLES = {
    control_pb2.REPLICA_STATE_READY: "green",
    control_pb2.REPLICA_STATE_FAILED: "red",
    control_pb2.REPLICA_STATE_PENDING: "yellow",
    control_pb2.REPLICA_STATE_LOADING: "cyan",
}


def plan_table(plan: ReplicaPlan) -> Table:
    """One row a rank: where it runs and what it will hold."""
    dims, quantization = plan.dims, plan.section.quantization
    weights = "" if quantization == "none" else f", {quantization} weights"
    table = Table(
        title=f"{plan.replica_id}: tensor {dims.tp} × pipeline {dims.pp}, {plan.dtype} on {plan.device}{weights}",
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


def status_view(replicas: Iterable[control_pb2.ReplicaStatus]) -> Group:
    """A heading and a table of ranks for each replica."""
    parts: list[RenderableType] = []
    for replica in replicas:
        parts.append(_heading(replica))
        if replica.ranks:
            parts.append(_rank_table(replica.ranks))
    return Group(*parts or ["No replica is wanted."])


def progress_view(progress: Iterable[control_pb2.ReplicaProgress]) -> Group:
    """`status_view`, and for each replica that starts how far it is and how long it may take."""
    parts: list[RenderableType] = []
    for entry in progress:
        parts.append(status_view([entry.status]))
        if entry.status.state == control_pb2.REPLICA_STATE_LOADING:
            parts.append(Text(f"  {progress_line(entry)}", "cyan"))
    return Group(*parts or ["No replica is wanted."])


def progress_line(entry: control_pb2.ReplicaProgress) -> str:
    """`loading: 60 MB of 514 MB read, 1 of 4 ranks ready after 3 s, about 4 s left`."""
    read = f"{human_bytes(entry.loaded_bytes)} of {human_bytes(entry.total_bytes)} read"
    ranks = f"{entry.ranks_ready} of {len(entry.status.ranks)} ranks ready after {entry.elapsed_seconds:.0f} s"
    left = f", about {entry.remaining_seconds:.0f} s left" if entry.HasField("remaining_seconds") else ""
    return f"{entry.phase or 'starting'}: {read}, {ranks}{left}"


def state_name(replica: control_pb2.ReplicaStatus) -> str:
    """Its state in one word."""
    return control_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_").lower()


def _heading(replica: control_pb2.ReplicaStatus) -> Text:
    style = _STATE_STYLES.get(replica.state, "")
    heading = Text.assemble(
        (replica.replica_id, "bold"), ": ", (state_name(replica), style), f", epoch {replica.epoch}"
    )
    if replica.address:
        heading.append(f", {replica.address}")
    if replica.state == control_pb2.REPLICA_STATE_READY and replica.HasField("load"):
        load = replica.load
        heading.append(f", {load.running} running, {load.waiting} waiting")
        heading.append(f", {load.used_blocks} of {load.total_blocks} KV blocks held")
    if replica.reason:
        heading.append(f"\n  {replica.reason}", style if replica.state == control_pb2.REPLICA_STATE_FAILED else "dim")
    return heading


def _rank_table(ranks: Sequence[control_pb2.RankStatus]) -> Table:
    loading = any(rank.loaded_bytes < rank.total_bytes for rank in ranks)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("stage", "rank", "node", "device", "pid", "layers", "heads", "phase"):
        table.add_column(name, no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    if loading:
        table.add_column("", width=_BAR_WIDTH)
    for rank in ranks:
        loaded, total = rank.loaded_bytes, rank.total_bytes
        cells: list[RenderableType] = [
            str(rank.stage),
            str(rank.tensor_rank),
            rank.node,
            rank.device,
            str(rank.pid or ""),
            span(rank.start_layer, rank.end_layer),
            f"{rank.query_heads}q {rank.kv_heads}kv",
            f"{rank.phase}, slow" if rank.slow else rank.phase,
            human_bytes(total),
        ]
        if loading:
            cells.append(ProgressBar(total=max(1, total), completed=loaded, width=_BAR_WIDTH))
        table.add_row(*cells)
    return table
