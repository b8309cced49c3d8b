"""Placement over fleets of GPUs: link domains, racks, kinds of device, and a node too few."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.placement import Placement, UnplaceableError, place, take
from cluster.control.topology import DEVICE_LABEL, LINK_DOMAIN_LABEL, RACK_LABEL, Node, nodes_from_ray
from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from model.parallel.partition import PartitionError, RankShard, StageCosts, StageMemory, partition
from tests.support.ranks import tiny_config


def node(name: str, gpus: int, kind: str = "H100", rack: str = "", domain: str = "", cpus: int = 64) -> Node:
    labels = {DEVICE_LABEL: kind, RACK_LABEL: rack, LINK_DOMAIN_LABEL: domain}
    return Node(name, f"host-{name}", cpus, gpus, cpus, {key: value for key, value in labels.items() if value})


EIGHT = [node(name, 8) for name in "abcdefgh"]
TWO_RACKS = [node(name, 8, rack="even" if index % 2 else "odd") for index, name in enumerate("abcdefgh")]
LOPSIDED = [node(name, 8, rack="small" if name in "ab" else "large") for name in "abcdef"]
ODD = [node("a", 8), node("b", 5), node("c", 3)]
MIXED = [node("a", 8), node("b", 8, "A100"), node("c", 8, "A100")]
SWITCHED = [node("a", 4, domain="x"), node("b", 4, domain="y"), node("c", 4, domain="y"), node("d", 4, domain="x")]


def where(placement: Placement) -> str:
    """Nodes of each stage, such as `a ab b`."""
    groups = [dict.fromkeys(member.node_id for member in group) for group in placement.rank_nodes]
    return " ".join("".join(group) for group in groups)


@pytest.mark.parametrize(
    ("dims", "nodes", "expected"),
    [
        pytest.param(ParallelDims(8, 8), EIGHT, "a b c d e f g h", id="8x8-h100"),
        pytest.param(ParallelDims(8, 4), TWO_RACKS, "a c e g", id="one-rack-is-enough"),
        pytest.param(ParallelDims(8, 4), LOPSIDED, "c d e f", id="in-the-rack-that-has-room"),
        pytest.param(ParallelDims(8, 6), TWO_RACKS, "a c e g b d", id="one-hop-between-racks"),
        pytest.param(ParallelDims(3, 4), ODD, "a a b c", id="three-odd-nodes"),
        pytest.param(ParallelDims(5, 2), ODD, "a b", id="odd-groups"),
        pytest.param(ParallelDims(8, 1), MIXED, "a", id="fast-ones-first"),
        pytest.param(ParallelDims(8, 2), MIXED, "b c", id="one-kind-if-enough"),
        pytest.param(ParallelDims(8, 3), MIXED, "a b c", id="all-kinds-if-not"),
        pytest.param(ParallelDims(8, 1), SWITCHED, "ad", id="a-switch-joins-nodes"),
        pytest.param(ParallelDims(8, 2), SWITCHED, "ad bc", id="two-switches"),
        pytest.param(ParallelDims(4, 2), SWITCHED, "a d", id="neighbours-share-a-switch"),
    ],
)
def test_gpus_are_placed(dims: ParallelDims, nodes: list[Node], expected: str) -> None:
    placement = place(dims, "cuda", nodes)
    assert where(placement) == expected
    assert placement.spans_nodes == (len(set(expected) - {" "}) > 1)


@pytest.mark.parametrize(
    ("dims", "nodes", "says"),
    [
        pytest.param(
            ParallelDims(8, 8),
            EIGHT[:7],
            ["1 stage(s) of 8 GPU(s) missing", "tensor_parallel 8, pipeline_parallel 7"],
            id="one-node-short",
        ),
        pytest.param(
            ParallelDims(3, 5), ODD, ["1 stage(s) of 3", "host-b 5 H100 GPU(s), 64 CPU(s) = 1 stage(s)"], id="odd"
        ),
        pytest.param(
            ParallelDims(8),
            [node("a", 4, domain="x"), node("b", 4, "A100", domain="x")],
            ["in one link domain and of one kind", "host-b 4 A100", "tensor_parallel 4, pipeline_parallel 2"],
            id="kinds-do-not-mix",
        ),
        pytest.param(ParallelDims(8), SWITCHED[:2], ["1 stage(s) of 8"], id="domains-are-not-crossed"),
        pytest.param(
            ParallelDims(16), SWITCHED, ["link domain x: host-a 4 H100 GPU(s), 64 CPU(s), host-d"], id="named"
        ),
    ],
)
def test_what_does_not_fit_is_told(dims: ParallelDims, nodes: list[Node], says: list[str]) -> None:
    with pytest.raises(UnplaceableError) as caught:
        place(dims, "cuda", nodes)
    for words in says:
        assert words in str(caught.value)


fleets = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from(["H100", "A100", ""]),
        st.sampled_from("rst"),
        st.sampled_from(["", "x", "y"]),
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: [node(str(index), *row) for index, row in enumerate(rows)])


@given(fleets, st.integers(1, 9), st.integers(1, 6))
def test_no_tensor_group_ever_crosses_a_link_domain(nodes: list[Node], tp: int, pp: int) -> None:
    domains: Counter[tuple[str, str]] = Counter()
    for each in nodes:
        domains[each.link_domain, each.device_kind] += each.gpus
    enough = sum(free // tp for free in domains.values()) >= pp
    try:
        placement = place(ParallelDims(tp, pp), "cuda", nodes)
    except UnplaceableError:
        assert not enough, "CPUs are plenty"
        return
    assert enough
    assert [len(group) for group in placement.rank_nodes] == [tp] * pp
    for group in placement.rank_nodes:
        assert len({(member.link_domain, member.device_kind) for member in group}) == 1
    assert all(left.gpus >= 0 and left.cpus >= 0 for left in take(nodes, placement))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("rstu")), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_no_other_placement_enters_fewer_racks(rows: list[tuple[int, str]], tp: int, pp: int) -> None:
    nodes = [node(str(index), gpus, rack=rack) for index, (gpus, rack) in enumerate(rows)]
    room = Counter({rack: sum(each.gpus // tp for each in nodes if each.rack == rack) for _, rack in rows})
    least = next((n for n in range(1, 5) if sum(count for _, count in room.most_common(n)) >= pp), None)
    if least is None:
        return
    racks = [group[0].rack for group in place(ParallelDims(tp, pp), "cuda", nodes).rank_nodes]
    assert sum(1 for before, after in itertools.pairwise(racks) if before != after) == least - 1


def test_labels_come_from_ray() -> None:
    raw = {"NodeID": "n", "Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 8.0, "GPU": 4.0}}
    labels = {"ray.io/accelerator-type": "H100", "argosy.io/rack": "r7", "argosy.io/link-domain": "switch-3"}
    (labelled,) = nodes_from_ray([raw | {"Labels": labels}], {"n": {"CPU": 8.0, "GPU": 4.0}}, local=False)
    assert (labelled.device_kind, labelled.rack, labelled.link_domain) == ("H100", "r7", "switch-3")
    (joined,) = nodes_from_ray([raw | {"Labels": {"ray.io/gpu-domain": "rack-1"}}], {}, local=False)
    assert joined.link_domain == "rack-1"
    (plain,) = nodes_from_ray([raw], {}, local=False)
    assert (plain.device_kind, plain.rack, plain.link_domain) == ("", "", "n")


def test_unlike_gpus_have_their_speeds_and_unknown_ones_none() -> None:
    mixed = place(ParallelDims(2, 2), "cuda", [node("a", 2), node("b", 2, "A100")])
    assert mixed.speeds == (3.35, 3.35, 2.04, 2.04)
    assert place(ParallelDims(2, 2), "cpu", [node("a", 2, cpus=3), node("b", 2, "A100", cpus=2)]).speeds == ()
    assert place(ParallelDims(2, 2), "cuda", [node("a", 2), node("b", 2)]).speeds == ()
    assert place(ParallelDims(2, 2), "cuda", [node("a", 2), node("b", 2, "B17")]).speeds == ()


layer_costs = st.lists(st.integers(1, 20), min_size=1, max_size=9)
speeds = st.lists(st.sampled_from([0.86, 2.04, 3.35, 4.8]), min_size=1, max_size=4)


@given(layer_costs, st.integers(0, 30), st.integers(0, 30), speeds)
def test_unlike_devices_and_layers_get_the_best_split(
    layers: list[int], embedding: int, head: int, stage_speeds: list[float]
) -> None:
    """Brute force over every split: the slowest stage is as fast as it can be, not just within 5 %."""
    config, dims = _layers(len(layers)), ParallelDims(pp=len(stage_speeds))
    costs = StageCosts([float(layer) for layer in layers], float(embedding), float(head))
    if len(stage_speeds) > len(layers):
        with pytest.raises(PartitionError, match="fewer than pp"):
            partition(config, dims, weights=stage_speeds, costs=costs)
        return

    def slowest(cuts: tuple[int, ...]) -> float:
        stages = itertools.pairwise((0, *cuts, len(layers)))
        return max(
            (sum(layers[start:end]) + embedding * (start == 0) + head * (end == len(layers))) / speed
            for (start, end), speed in zip(stages, stage_speeds, strict=True)
        )

    shards = partition(config, dims, weights=stage_speeds, costs=costs)
    best = min(map(slowest, itertools.combinations(range(1, len(layers)), len(stage_speeds) - 1)))
    assert slowest(tuple(shard.layers.end for shard in shards[:-1])) <= best * (1 + 1e-9)


@given(layer_costs, st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_no_stage_is_given_more_than_it_has_room_for(layers: list[int], room: list[int]) -> None:
    """All layers equally quick, of unlike sizes: refused only where no split fits, and never worse than the best."""
    count, stages = len(layers), len(room)
    memory = StageMemory(StageCosts([float(layer) for layer in layers], 2.0, 3.0), [float(size) for size in room])
    needed = memory.needed.stages(count)
    fitting = [
        max(end - start for start, end in itertools.pairwise(ends))
        for cuts in itertools.combinations(range(1, count), stages - 1)
        for ends in [(0, *cuts, count)]
        if all(needed(*span) <= size for span, size in zip(itertools.pairwise(ends), room, strict=True))
    ]

    def cut() -> tuple[RankShard, ...]:
        return partition(_layers(count), ParallelDims(pp=stages), costs=StageCosts(1.0, 0.0, 0.0), memory=memory)

    if not fitting:
        with pytest.raises(PartitionError, match="fits their memory" if stages <= count else "fewer than pp"):
            cut()
        return
    shards = cut()
    assert max(shard.layers.size for shard in shards) == min(fitting)


def _layers(count: int) -> ModelConfig:
    return tiny_config(num_layers=count)
