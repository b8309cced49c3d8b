"""Which node holds which rank. Pure: inventory in, placement out.

A tensor group never leaves a link domain, nor mixes kinds of GPU; it stays on one node where it can. Stages that follow
each other lie as near as can be: in one domain, else in one rack. Whoever cannot be placed hears what is missing and
what would fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.control.capacity.devices import KINDS
from cluster.control.topology import Node
from cluster.launch import Device
from model.parallel.dims import ParallelDims

Group = tuple[Node, ...]
"""The node of each rank of one tensor group."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The node of each rank, by stage and tensor rank."""

    rank_nodes: tuple[Group, ...]
    device: Device

    @property
    def stage_nodes(self) -> tuple[Node, ...]:
        """The node of each stage's first rank."""
        return tuple(group[0] for group in self.rank_nodes)

    @property
    def engine_node(self) -> Node:
        """Where the engine runs: with stage 0, which it feeds."""
        return self.rank_nodes[0][0]

    @property
    def spans_nodes(self) -> bool:
        return len({node.node_id for group in self.rank_nodes for node in group}) > 1

    @property
    def speeds(self) -> tuple[float, ...]:
        """Relative speed of each world rank's GPU; empty on CPUs, if all are alike, or if a kind is unknown.

        Memory bandwidth sets the pace of decoding.
        """
        kinds = [KINDS.get(node.device_kind) for group in self.rank_nodes for node in group]
        known = [kind.memory_bandwidth / 1e12 for kind in kinds if kind is not None]
        are_unlike = self.device == "cuda" and len(known) == len(kinds) and len(set(known)) > 1
        return tuple(known) if are_unlike else ()


class UnplaceableError(ValueError):
    """The free devices do not hold the replica; the message says what is missing and the nearest plan that fits."""


def place(
    dims: ParallelDims,
    device: Device,
    nodes: Sequence[Node],
    *,
    can_cut: Callable[[ParallelDims], bool] = lambda dims: True,
) -> Placement:
    """Place one replica: on GPUs of one kind if there are enough (the fastest first), with the shortest ways between
    neighbouring stages, and of equal places on the fullest that still fits.

    Args:
        can_cut: whether the model can be cut that way; used for the nearest plan only.

    Raises:
        UnplaceableError: it does not fit.
    """
    placement = _try_place(dims, device, nodes)
    if placement is None:
        raise UnplaceableError(_explain(dims, device, nodes, can_cut))
    return placement


def take(nodes: Sequence[Node], placement: Placement) -> list[Node]:
    """The inventory that is left once `placement` is in use."""
    left = []
    for node in nodes:
        ranks = sum(1 for group in placement.rank_nodes for used in group if used.node_id == node.node_id)
        engine = 1 if placement.engine_node.node_id == node.node_id else 0
        gpus = ranks if placement.device == "cuda" else 0
        left.append(replace(node, cpus=node.cpus - ranks - engine, gpus=node.gpus - gpus))
    return left


def _try_place(dims: ParallelDims, device: Device, nodes: Sequence[Node]) -> Placement | None:
    for pool in _pools(device, nodes):
        found = [way for engine in pool if (way := _from(engine, dims, device, pool))]
        if found:
            best = min(found, key=lambda way: (*_cost(way, dims, device, pool), way[0][0].node_id))
            return Placement(best, device)
    return None


def _pools(device: Device, nodes: Sequence[Node]) -> Iterator[Sequence[Node]]:
    """Nodes to try: those of each kind of GPU, fast ones first, then all together."""
    if device == "cuda":
        kinds = {node.device_kind for node in nodes}
        for name in sorted(kinds, key=lambda name: (-_bandwidth(name), name)) if len(kinds) > 1 else ():
            yield [node for node in nodes if node.device_kind == name]
    yield nodes


def _bandwidth(kind: str) -> float:
    return KINDS[kind].memory_bandwidth if kind in KINDS else 0.0


def _from(engine: Node, dims: ParallelDims, device: Device, nodes: Sequence[Node]) -> tuple[Group, ...] | None:
    """A group for each stage, with the engine and the first rank on `engine`; from there on the nearest roomy domain.

    Taking the roomiest domains, rack by rack, enters the fewest racks, and in them few domains.
    """
    free = [replace(node, cpus=node.cpus - 1) if node is engine else node for node in nodes]
    groups = {key: _groups(members, dims.tp, device) for key, members in _domains(free, device).items()}
    home = _domain_key(engine, device)
    # The first rank runs beside the engine; of a group over several nodes any member may come first.
    first = next((group for group in groups[home] if any(node.node_id == engine.node_id for node in group)), None)
    if first is None:
        return None
    room_of_rack: dict[str, int] = {}
    for members in groups.values():
        for group in members:
            room_of_rack[group[0].rack] = room_of_rack.get(group[0].rack, 0) + 1

    def order(key: tuple[str, str]) -> tuple[bool, bool, int, str, int, tuple[str, str]]:
        rack = groups[key][0][0].rack
        return key != home, rack != engine.rack, -room_of_rack[rack], rack, -len(groups[key]), key

    at_home = [first, *(group for group in groups[home] if group is not first)]
    at_home.sort(key=lambda group: group[0].node_id != engine.node_id)
    others = [key for key in groups if groups[key] and key != home]
    ways = itertools.chain(at_home, *(groups[key] for key in sorted(others, key=order)))
    chosen = list(itertools.islice(ways, dims.pp))
    if len(chosen) < dims.pp:
        return None
    chosen[0] = tuple(sorted(chosen[0], key=lambda node: node.node_id != engine.node_id))
    by_id = {node.node_id: node for node in nodes}
    return tuple(tuple(by_id[node.node_id] for node in group) for group in chosen)


def _cost(
    way: Sequence[Group], dims: ParallelDims, device: Device, nodes: Sequence[Node]
) -> tuple[int, int, int, int, int]:
    """What is worse the more there is of it: hops between racks, between domains, between nodes; idle room; late turns.

    Of two ways alike the one whose first node holds more stages wins: the engine is near to them.
    """
    hops = [(before[-1], after[0]) for before, after in itertools.pairwise(way)]
    far = sum(1 for before, after in hops if before.rack != after.rack)
    near = sum(1 for before, after in hops if _domain_key(before, device) != _domain_key(after, device))
    between = sum(1 for before, after in hops if before.node_id != after.node_id)
    used = {node.node_id for group in way for node in group}
    room = sum(_ranks(node, device) for node in nodes if node.node_id in used)
    return far, near, between, room, -sum(1 for group in way if group[0].node_id == way[0][0].node_id)


def _domain_key(node: Node, device: Device) -> tuple[str, str]:
    """Nodes with the same key may share a tensor group. Ranks on CPUs meet in their node's memory."""
    return (node.link_domain, node.device_kind) if device == "cuda" else (node.node_id, "")


def _domains(nodes: Sequence[Node], device: Device) -> Mapping[tuple[str, str], list[Node]]:
    domains: dict[tuple[str, str], list[Node]] = {}
    for node in sorted(nodes, key=lambda node: (-_ranks(node, device), node.node_id)):
        domains.setdefault(_domain_key(node, device), []).append(node)
    return domains


def _groups(members: Sequence[Node], tp: int, device: Device) -> list[Group]:
    """The tensor groups that one domain holds: whole ones on each node, then what is left over several of them."""
    whole = [(node,) * tp for node in members for _ in range(_ranks(node, device) // tp)]
    left = [node for node in members for _ in range(_ranks(node, device) % tp)]
    over_nodes = [tuple(left[start : start + tp]) for start in range(0, len(left) - tp + 1, tp)]
    return whole + over_nodes


def _ranks(node: Node, device: Device) -> int:
    """Ranks that a node has room for."""
    by_cpu = max(0, node.cpus)
    return min(by_cpu, max(0, node.gpus)) if device == "cuda" else by_cpu


def _explain(dims: ParallelDims, device: Device, nodes: Sequence[Node], can_cut: Callable[[ParallelDims], bool]) -> str:
    unit = "GPU" if device == "cuda" else "CPU"
    where = "in one link domain and of one kind" if device == "cuda" else "on one node"
    needs = f"{dims.pp} stage(s) of {dims.tp} {unit}(s), each stage {where}, and 1 CPU for the engine"
    domains = _domains(nodes, device)
    found = "; ".join(_describe(members, dims.tp, device) for members in domains.values()) or "no node"
    missing = dims.pp - sum(len(_groups(members, dims.tp, device)) for members in domains.values())
    lacks = f"{missing} stage(s) of {dims.tp} {unit}(s) missing" if missing > 0 else "a CPU for the engine is missing"
    nearest = next((d for d in _nearby(dims) if can_cut(d) and _try_place(d, device, nodes)), None)
    advice = (
        f"nearest that fits: tensor_parallel {nearest.tp}, pipeline_parallel {nearest.pp}"
        if nearest
        else f"nothing fits until a node has a free {unit} and a CPU for the engine"
    )
    return f"needs {needs}; free: {found}; {lacks}; {advice}"


def _describe(members: Sequence[Node], tp: int, device: Device) -> str:
    """One domain: its nodes' free devices, and the stages that it holds."""
    room = len(_groups(members, tp, device))
    kind = f"{members[0].device_kind} " if members[0].device_kind else ""
    free = [
        f"{node.host} " + (f"{node.gpus} {kind}GPU(s), " if device == "cuda" else "") + f"{node.cpus} CPU(s)"
        for node in members
    ]
    name = f"link domain {members[0].link_domain}: " if len(members) > 1 else ""
    return f"{name}{', '.join(free)} = {room} stage(s)"


def _nearby(dims: ParallelDims) -> Iterator[ParallelDims]:
    """Other shapes of at most as many ranks: most ranks first, then the tensor size nearest to the wanted one."""
    shapes = [
        ParallelDims(tp, pp)
        for tp in range(1, dims.world_size + 1)
        for pp in range(1, dims.world_size // tp + 1)
        if (tp, pp) != (dims.tp, dims.pp)
    ]
    yield from sorted(shapes, key=lambda d: (-d.world_size, abs(d.tp - dims.tp), d.pp))
