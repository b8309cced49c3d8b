"""Which node holds which stage. Pure: inventory in, placement out.

A tensor group never leaves a node, stages may span nodes: a stage is one indivisible unit of `tp` ranks. Whoever cannot
be placed hears what is missing and what would fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.control.topology import Node
from cluster.launch import Device
from model.parallel.dims import ParallelDims


@dataclass(frozen=True, slots=True)
class Placement:
    """The node of each stage, by stage."""

    stage_nodes: tuple[Node, ...]

    @property
    def engine_node(self) -> Node:
        """Where the engine runs: with stage 0, which it feeds."""
        return self.stage_nodes[0]

    @property
    def spans_nodes(self) -> bool:
        return len({node.node_id for node in self.stage_nodes}) > 1


class UnplaceableError(ValueError):
    """The free devices do not hold the replica; the message says what is missing and the nearest plan that fits."""


def place(
    dims: ParallelDims,
    device: Device,
    nodes: Sequence[Node],
    *,
    can_cut: Callable[[ParallelDims], bool] = lambda dims: True,
) -> Placement:
    """Place one replica: on the fewest nodes, neighbouring stages together, the fullest node that still fits first.

    Args:
        can_cut: whether the model can be cut that way; used for the nearest plan only.

    Raises:
        UnplaceableError: it does not fit.
    """
    placement = _try_place(dims, device, nodes)
    if placement is None:
        raise UnplaceableError(_explain(dims, device, nodes, can_cut))
    return placement


def take(nodes: Sequence[Node], placement: Placement, dims: ParallelDims, device: Device) -> list[Node]:
    """The inventory that is left once `placement` is in use."""
    left = []
    for node in nodes:
        ranks = dims.tp * sum(1 for stage in placement.stage_nodes if stage.node_id == node.node_id)
        engine = 1 if placement.engine_node.node_id == node.node_id else 0
        gpus = ranks if device == "cuda" else 0
        left.append(replace(node, cpus=node.cpus - ranks - engine, gpus=node.gpus - gpus))
    return left


def _try_place(dims: ParallelDims, device: Device, nodes: Sequence[Node]) -> Placement | None:
    alone = [node for node in nodes if _stages_with_engine(node, dims.tp, device) >= dims.pp]
    if alone:
        tightest = min(alone, key=lambda node: (_stages(node, dims.tp, device), node.node_id))
        return Placement((tightest,) * dims.pp)
    by_room = sorted(nodes, key=lambda node: (-_stages(node, dims.tp, device), node.node_id))
    for first in by_room:
        room = _stages_with_engine(first, dims.tp, device)
        if room == 0:
            continue
        stages = [first] * room
        for node in by_room:
            if node is not first:
                stages.extend([node] * _stages(node, dims.tp, device))
        if len(stages) >= dims.pp:
            return Placement(tuple(stages[: dims.pp]))
    return None


def _stages(node: Node, tp: int, device: Device) -> int:
    by_cpu = max(0, node.cpus) // tp
    return min(by_cpu, max(0, node.gpus) // tp) if device == "cuda" else by_cpu


def _stages_with_engine(node: Node, tp: int, device: Device) -> int:
    return _stages(replace(node, cpus=node.cpus - 1), tp, device)


def _explain(dims: ParallelDims, device: Device, nodes: Sequence[Node], can_cut: Callable[[ParallelDims], bool]) -> str:
    unit = "GPU" if device == "cuda" else "CPU"
    needs = f"{dims.pp} stage(s) of {dims.tp} {unit}(s), each stage on one node, and 1 CPU for the engine"
    found = "; ".join(_describe(node, dims.tp, device) for node in nodes) or "no node"
    missing = dims.pp - sum(_stages(node, dims.tp, device) for node in nodes)
    lacks = f"{missing} stage(s) of {dims.tp} {unit}(s) missing" if missing > 0 else "a CPU for the engine is missing"
    nearest = next((d for d in _nearby(dims) if can_cut(d) and _try_place(d, device, nodes)), None)
    advice = (
        f"nearest that fits: tensor_parallel {nearest.tp}, pipeline_parallel {nearest.pp}"
        if nearest
        else f"nothing fits until a node has a free {unit} and a CPU for the engine"
    )
    return f"needs {needs}; free: {found}; {lacks}; {advice}"


def _describe(node: Node, tp: int, device: Device) -> str:
    room = _stages(node, tp, device)
    gpus = f"{node.gpus} GPU(s), " if device == "cuda" else ""
    return f"{node.host} {gpus}{node.cpus} CPU(s) = {room} stage(s)"


def _nearby(dims: ParallelDims) -> Iterator[ParallelDims]:
    """Other shapes of at most as many ranks: most ranks first, then the tensor size nearest to the wanted one."""
    shapes = [
        ParallelDims(tp, pp)
        for tp in range(1, dims.world_size + 1)
        for pp in range(1, dims.world_size // tp + 1)
        if (tp, pp) != (dims.tp, dims.pp)
    ]
    yield from sorted(shapes, key=lambda d: (-d.world_size, abs(d.tp - dims.tp), d.pp))
