"""What Kubernetes' objects mean to Argosy. Pure: objects as the API sends them (JSON) in, plain values out.

Fields are those of discovery.k8s.io/v1 EndpointSlice, v1 Node and v1 Pod (kubernetes.io/docs/reference/kubernetes-api).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]

REGION_LABEL = "argosy.io/region"
"""On the Service of a region's controller; Kubernetes copies it to the Service's EndpointSlices."""
CONTROLLER_PORT = "controller"
"""Name of that Service's port."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of the node under one pod address."""

    node: str
    """Name of the Kubernetes node."""
    labels: Mapping[str, str]
    """The node's."""
    leaving: str = ""
    """Why work should go elsewhere; empty if it may stay."""


def controllers(slices: Iterable[Object]) -> dict[str, tuple[str, ...]]:
    """host:port of every controller by region, ready ones first, in an order that does not depend on the slices'.

    A controller that is not ready is listed: it answers before it does, and whoever asks goes on to the next one.
    """
    found: dict[str, dict[str, bool]] = {}
    for piece in slices:
        region = (piece["metadata"].get("labels") or {}).get(REGION_LABEL)
        port = next((p.get("port") for p in piece.get("ports") or () if p.get("name") == CONTROLLER_PORT), None)
        if not region or not port or piece.get("addressType") == "FQDN":
            continue
        for endpoint in piece.get("endpoints") or ():
            # Absent means unknown, which the API asks to take for ready.
            ready = (endpoint.get("conditions") or {}).get("ready") is not False
            for address in endpoint.get("addresses") or ():
                host = f"[{address}]" if ":" in address else address
                of_region = found.setdefault(region, {})
                of_region[f"{host}:{port}"] = ready or of_region.get(f"{host}:{port}", False)
    return {
        region: tuple(sorted(addresses, key=lambda address: (not addresses[address], address)))
        for region, addresses in sorted(found.items())
    }


def machines(pods: Iterable[Object], nodes: Iterable[Object]) -> dict[str, Machine]:
    """What is under each pod's address: the node, its labels, and whether node or pod is about to go."""
    by_name = {node["metadata"]["name"]: node for node in nodes}
    found = {}
    for pod in pods:
        name, status = pod["spec"].get("nodeName"), pod.get("status") or {}
        if not name or status.get("phase") in ("Succeeded", "Failed"):
            continue
        node = by_name.get(name)
        labels = dict((node["metadata"].get("labels") or {}) if node else {})
        leaving = _pod_leaves(pod) or (_node_leaves(node) if node else "")
        addresses = {entry["ip"] for entry in status.get("podIPs") or ()}
        for address in addresses | ({status["podIP"]} if status.get("podIP") else set()):
            found[address] = Machine(name, labels, leaving)
    return found


def _pod_leaves(pod: Object) -> str:
    """An eviction or a deletion: the pod has its grace period left."""
    name = pod["metadata"]["name"]
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return f"pod {name} is being evicted ({condition.get('reason', 'no reason given')})"
    return f"pod {name} is being deleted" if pod["metadata"].get("deletionTimestamp") else ""


def _node_leaves(node: Object) -> str:
    """A cordon, or a taint that evicts what tolerates it no longer."""
    name, spec = node["metadata"]["name"], node.get("spec") or {}
    if spec.get("unschedulable"):
        return f"node {name} is cordoned"
    evicting = next((taint for taint in spec.get("taints") or () if taint.get("effect") == "NoExecute"), None)
    return f"node {name} is tainted {evicting['key']}" if evicting else ""
