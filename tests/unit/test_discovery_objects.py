"""What Kubernetes' objects mean: controllers of regions, links of nodes, who leaves."""

from __future__ import annotations

from typing import Any

from cluster.discovery.objects import controllers, machines


def piece(region: str, *endpoints: tuple[str, bool | None], port: str = "controller", **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"uid": "u", "labels": {"argosy.io/region": region}},
        "addressType": "IPv4",
        "ports": [{"name": "other", "port": 1}, {"name": port, "port": 50052}],
        "endpoints": [
            {"addresses": [address], "conditions": {} if ready is None else {"ready": ready}}
            for address, ready in endpoints
        ],
        **fields,
    }


def pod(
    name: str, ip: str, node: str | None, *conditions: dict[str, str], phase: str = "Running", **metadata: str
) -> Any:
    return {
        "metadata": {"uid": name, "name": name, **metadata},
        "spec": {"nodeName": node} if node else {},
        "status": {"podIP": ip, "podIPs": [{"ip": ip}], "phase": phase, "conditions": list(conditions)},
    }


def node(name: str, labels: dict[str, str] | None = None, **spec: Any) -> Any:
    return {"metadata": {"uid": name, "name": name, "labels": labels or {}}, "spec": spec}


def test_controllers_are_listed_by_region_ready_ones_first() -> None:
    slices = [
        piece("west", ("10.0.0.9", False), ("10.0.0.2", True)),
        piece("west", ("10.0.0.3", None)),
        piece("east", ("fd00::1", True), addressType="IPv6"),
        piece("north", ("10.0.0.4", True), port="metrics"),
        {"metadata": {"uid": "x"}, "ports": None, "endpoints": None},
    ]
    expected = {"east": ("[fd00::1]:50052",), "west": ("10.0.0.2:50052", "10.0.0.3:50052", "10.0.0.9:50052")}
    assert controllers(slices) == expected
    assert controllers(reversed(slices)) == expected


def test_an_address_in_two_slices_counts_as_ready_if_one_says_so() -> None:
    slices = [piece("west", ("10.0.0.1", True)), piece("west", ("10.0.0.1", False), ("10.0.0.0", False))]
    assert controllers(slices) == {"west": ("10.0.0.1:50052", "10.0.0.0:50052")}


def test_pods_stand_on_nodes_whose_labels_they_get() -> None:
    nodes = [node("a", {"nvidia.com/gpu.clique": "c1"})]
    found = machines([pod("p", "10.1.0.1", "a"), pod("q", "10.1.0.2", None), pod("r", "10.1.0.3", "unseen")], nodes)
    assert found["10.1.0.1"].labels == {"nvidia.com/gpu.clique": "c1"}
    assert not found["10.1.0.1"].leaving
    assert set(found) == {"10.1.0.1", "10.1.0.3"}
    assert found["10.1.0.3"].labels == {}


def test_cordons_taints_evictions_and_deletions_announce_that_a_pod_leaves() -> None:
    target = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    former = {"type": "DisruptionTarget", "status": "False"}
    nodes = [
        node("cordoned", unschedulable=True),
        node("tainted", taints=[{"key": "gone", "effect": "NoExecute"}]),
        node("picky", taints=[{"key": "gpu", "effect": "NoSchedule"}]),
    ]
    pods = [
        pod("a", "1", "cordoned"),
        pod("b", "2", "tainted"),
        pod("c", "3", "picky", target),
        pod("d", "4", "picky", former),
        pod("e", "5", "picky", deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("f", "6", "cordoned", phase="Failed"),
    ]
    leaving = {address: machine.leaving for address, machine in machines(pods, nodes).items()}
    assert leaving == {
        "1": "node cordoned is cordoned",
        "2": "node tainted is tainted gone",
        "3": "pod c is being evicted (EvictionByEvictionAPI)",
        "4": "",
        "5": "pod e is being deleted",
    }
