"""Placement over made-up inventories: where stages go, and what is said when they go nowhere."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.placement import UnplaceableError, place, take
from cluster.control.topology import Node, count_gpus, nodes_from_ray
from model.parallel.dims import ParallelDims


def node(name: str, cpus: int, gpus: int = 0) -> Node:
    return Node(name, f"host-{name}", cpus, gpus, cores=cpus)


@pytest.mark.parametrize(
    ("dims", "device", "nodes", "expected"),
    [
        pytest.param(ParallelDims(1, 1), "cpu", [node("a", 2)], "a", id="engine-and-rank"),
        pytest.param(ParallelDims(2, 2), "cpu", [node("a", 5)], "aa", id="exactly-full"),
        pytest.param(ParallelDims(2, 2), "cpu", [node("a", 99), node("b", 5)], "bb", id="tightest-node-first"),
        pytest.param(ParallelDims(8, 2), "cuda", [node("a", 64, 8), node("b", 64, 8)], "ab", id="stages-span-nodes"),
        pytest.param(
            ParallelDims(4, 3), "cuda", [node("a", 64, 4), node("b", 64, 8)], "bba", id="neighbours-stay-together"
        ),
        pytest.param(ParallelDims(2, 2), "cpu", [node("a", 2), node("b", 3)], "ba", id="engine-goes-where-its-cpu-is"),
    ],
)
def test_stages_are_placed(dims: ParallelDims, device: str, nodes: list[Node], expected: str) -> None:
    placement = place(dims, device, nodes)
    assert "".join(stage.node_id for stage in placement.stage_nodes) == expected
    assert placement.engine_node.node_id == expected[0]
    assert placement.spans_nodes == (len(set(expected)) > 1)


@pytest.mark.parametrize(
    ("dims", "device", "nodes", "says"),
    [
        pytest.param(
            ParallelDims(4, 1),
            "cuda",
            [node("a", 64, 2), node("b", 64, 2)],
            ["1 stage(s) of 4 GPU(s) missing", "host-a 2 GPU(s)", "tensor_parallel 2, pipeline_parallel 2"],
            id="group-never-split",
        ),
        pytest.param(ParallelDims(1, 1), "cuda", [node("a", 8)], ["0 GPU(s)", "nothing fits"], id="no-gpu"),
        pytest.param(
            ParallelDims(1, 2), "cpu", [node("a", 2)], ["a CPU for the engine is missing"], id="no-room-for-engine"
        ),
        pytest.param(ParallelDims(1, 1), "cpu", [], ["free: no node"], id="no-node"),
    ],
)
def test_what_is_missing_is_said(dims: ParallelDims, device: str, nodes: list[Node], says: list[str]) -> None:
    with pytest.raises(UnplaceableError) as caught:
        place(dims, device, nodes)
    for words in says:
        assert words in str(caught.value)


def test_nearest_plan_must_be_one_that_the_model_allows() -> None:
    with pytest.raises(UnplaceableError, match="tensor_parallel 1, pipeline_parallel 4"):
        place(ParallelDims(8, 1), "cpu", [node("a", 5)], can_cut=lambda dims: dims.tp == 1)


inventories = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=5).map(
    lambda sizes: [node(str(index), cpus, gpus) for index, (cpus, gpus) in enumerate(sizes)]
)


@given(inventories, st.integers(1, 6), st.integers(1, 6), st.sampled_from(["cpu", "cuda"]))
def test_a_placement_fits_and_is_only_refused_when_none_fits(nodes: list[Node], tp: int, pp: int, device: str) -> None:
    dims = ParallelDims(tp, pp)
    try:
        placement = place(dims, device, nodes)
    except UnplaceableError:
        assert not any(_fits_with_engine_on(first, dims, device, nodes) for first in nodes)
        return
    for left in take(nodes, placement):
        assert left.cpus >= 0
        assert left.gpus >= 0
    visits = [stage.node_id for stage in placement.stage_nodes]
    turns = sum(1 for before, after in itertools.pairwise(visits) if before != after)
    assert turns == len(Counter(visits)) - 1, "a node's stages are neighbours"


def _fits_with_engine_on(first: Node, dims: ParallelDims, device: str, nodes: list[Node]) -> bool:
    room = 0
    for candidate in nodes:
        cpus = candidate.cpus - (1 if candidate is first else 0)
        if cpus < 0 or (candidate is first and cpus < dims.tp):
            return False
        stages = cpus // dims.tp
        room += min(stages, candidate.gpus // dims.tp) if device == "cuda" else stages
    if device == "cuda" and first.gpus < dims.tp:
        return False
    return room >= dims.pp


def test_ray_nodes_become_an_inventory() -> None:
    raw = [
        {
            "NodeID": "b",
            "Alive": True,
            "NodeManagerAddress": "10.0.0.2",
            "Resources": {"CPU": 8.0},
            "Labels": {"r": "1"},
        },
        {"NodeID": "a", "Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 4.0, "GPU": 2.0}},
        {"NodeID": "c", "Alive": False, "NodeManagerAddress": "10.0.0.3", "Resources": {"CPU": 4.0}},
    ]
    free = {"a": {"CPU": 3.0, "GPU": 1.0}}
    assert nodes_from_ray(raw, free, local=False) == [
        Node("a", "10.0.0.1", 3, 1, cores=4),
        Node("b", "10.0.0.2", 0, 0, cores=8, labels={"r": "1"}),
    ]


def test_gpus_are_counted_and_hidden_by_the_environment(tmp_path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path, visible="0,1,2") == 3
    assert count_gpus(tmp_path, visible="1") == 1
    assert count_gpus(tmp_path, visible="") == 0
    assert count_gpus(tmp_path, visible="-1") == 0
