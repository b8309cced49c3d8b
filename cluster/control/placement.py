"""Which node holds which rank. Pure: inventory in, placement out.

A tensor group never leaves a link domain, nor mixes kinds of GPU; it stays on one node where it can. Stages that follow
each other lie as near as can be: in one domain, else in one rack. Whoever cannot be placed hears what is missing and
what would fit.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.control.capacity.devices import KINDS
from cluster.control.topology import Node
from cluster.launch import Device
from model.parallel.dims import ParallelDims

Group = tuple[Node, ...]
"""The node of each rank of one tensor group."""
_Domain = tuple[str, str]
"""Link domain, and kind of GPU."""


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
    for members in _pools(device, nodes):
        pool = _Pool.of(members, dims.tp, device)
        if pool.room < dims.pp:
            continue
        found = [way for engine in members if (way := pool.way_from(engine, dims, device))]
        if found:
            return Placement(min(found, key=lambda way: (*_cost(way, device), way[0][0].node_id)), device)
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


@dataclass(frozen=True, slots=True)
class _Pool:
    """Domains to choose from, and the tensor groups of one size that each holds."""

    members: Mapping[_Domain, list[Node]]
    groups: Mapping[_Domain, list[Group]]
    racks: Mapping[str, list[_Domain]]
    """Roomy racks first, in each the roomy domains first."""

    @classmethod
    def of(cls, nodes: Sequence[Node], tp: int, device: Device) -> _Pool:
        members = _domains(nodes, device)
        groups = {domain: _groups(inside, tp, device) for domain, inside in members.items()}
        room: Counter[str] = Counter()
        for domain, inside in members.items():
            room[inside[0].rack] += len(groups[domain])
        racks: dict[str, list[_Domain]] = {rack: [] for rack in sorted(room, key=lambda rack: (-room[rack], rack))}
        for domain in sorted(groups, key=lambda domain: (-len(groups[domain]), domain)):
            racks[members[domain][0].rack].append(domain)
        return cls(members, groups, racks)

    @property
    def room(self) -> int:
        return sum(map(len, self.groups.values()))

    def way_from(self, engine: Node, dims: ParallelDims, device: Device) -> tuple[Group, ...] | None:
        """A group for each stage, with the engine and the first rank on `engine`; from there to the nearest domains.

        Taking the roomiest, rack by rack, enters the fewest racks, and in them few domains.
        """
        home = _domain_key(engine, device)
        less = replace(engine, cpus=engine.cpus - 1)
        inside = _groups([less if node is engine else node for node in self.members[home]], dims.tp, device)
        at_home = [tuple(engine if node is less else node for node in group) for group in inside]
        # The first rank runs beside the engine; of a group over several nodes any member may come first.
        first = next((group for group in at_home if engine in group), None)
        if first is None:
            return None
        here = [tuple(sorted(first, key=lambda node: node is not engine))]
        here += sorted((group for group in at_home if group is not first), key=lambda group: group[0] is not engine)
        racks = sorted(self.racks, key=lambda rack: rack != engine.rack)
        others = (domain for rack in racks for domain in self.racks[rack] if domain != home)
        ways = itertools.chain(here, itertools.chain.from_iterable(self.groups[domain] for domain in others))
        chosen = tuple(itertools.islice(ways, dims.pp))
        return chosen if len(chosen) == dims.pp else None


def _cost(way: Sequence[Group], device: Device) -> tuple[int, int, int, int, int]:
    """What is worse the more there is of it: hops between racks, between domains, between nodes; idle room; late turns.

    Of two ways alike the one whose first node holds more stages wins: the engine is near to them.
    """
    hops = [(before[-1], after[0]) for before, after in itertools.pairwise(way)]
    far = sum(1 for before, after in hops if before.rack != after.rack)
    near = sum(1 for before, after in hops if _domain_key(before, device) != _domain_key(after, device))
    between = sum(1 for before, after in hops if before.node_id != after.node_id)
    used = {node.node_id: node for group in way for node in group}
    room = sum(_ranks(node, device) for node in used.values())
    return far, near, between, room, -sum(1 for group in way if group[0].node_id == way[0][0].node_id)


def _domain_key(node: Node, device: Device) -> _Domain:
    """Nodes with the same key may share a tensor group. Ranks on CPUs meet in their node's memory."""
    return (node.link_domain, node.device_kind) if device == "cuda" else (node.node_id, "")


def _domains(nodes: Sequence[Node], device: Device) -> dict[_Domain, list[Node]]:
    domains: dict[_Domain, list[Node]] = {}
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
    ranks = [[_ranks(node, device) for node in members] for members in domains.values()]
    nearest = next(
        (shape for shape in _nearby(dims, ranks) if can_cut(shape) and _try_place(shape, device, nodes)), None
    )
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


def _nearby(dims: ParallelDims, ranks: Sequence[Sequence[int]]) -> list[ParallelDims]:
    """Other shapes of at most as many ranks: most ranks first, then the tensor size nearest to the wanted one.

    Args:
        ranks: what the nodes of each domain have room for.
    """
    largest = min(dims.world_size, max(map(sum, ranks), default=0))
    shapes: list[ParallelDims] = []
    for tp in range(1, largest + 1):
        room = sum(sum(free // tp for free in domain) + sum(free % tp for free in domain) // tp for domain in ranks)
        shapes += [ParallelDims(tp, pp) for pp in range(1, min(room, dims.world_size // tp) + 1)]
    others = [shape for shape in shapes if (shape.tp, shape.pp) != (dims.tp, dims.pp)]
    return sorted(others, key=lambda d: (-d.world_size, abs(d.tp - dims.tp), d.pp))
