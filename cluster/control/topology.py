"""What there is to place on: nodes with their free devices. Knows numbers and names; the backend fills them in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

LOOPBACK = "127.0.0.1"

# Labels of Ray nodes (`ray start --labels KEY=VALUE,...`, or rayStartParams.labels of a KubeRay group).
LINK_DOMAIN_LABEL = "argosy.io/link-domain"
"""Nodes with the same value reach each other's GPUs over one fast link, such as an NVLink switch over several machines.
A tensor group never leaves it. Without the label a node is a domain of its own."""
RAY_DOMAIN_LABEL = "ray.io/gpu-domain"
"""The same, as whoever runs the Ray cluster may have set it; ours goes first."""
RACK_LABEL = "argosy.io/rack"
"""Nodes with the same value are near: stages that follow each other are kept there. Without it nodes count as near."""
DEVICE_LABEL = "ray.io/accelerator-type"
"""Kind of GPU, such as H100. Ray sets it by itself."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine as the scheduler sees it. Amounts are what is free for new replicas."""

    node_id: str
    host: str
    """Address that other nodes reach it by."""
    cpus: int
    """Logical CPUs: one a rank, one an engine. May exceed `cores`, so that a laptop holds many ranks."""
    gpus: int
    cores: int
    """Cores that the ranks' threads share."""
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    """Of the machine, not of its GPUs; 0: unknown."""

    @property
    def link_domain(self) -> str:
        """What a tensor group on GPUs never leaves."""
        return self.labels.get(LINK_DOMAIN_LABEL) or self.labels.get(RAY_DOMAIN_LABEL) or self.node_id

    @property
    def rack(self) -> str:
        return self.labels.get(RACK_LABEL, "")

    @property
    def device_kind(self) -> str:
        """Kind of its GPUs, as Ray found out; empty if unknown."""
        return self.labels.get(DEVICE_LABEL, "")


def this_machine(num_cpus: int) -> Node:
    """The node that a local Ray cluster will consist of, known before Ray runs."""
    return Node("this machine", LOOPBACK, num_cpus, count_gpus(), available_cores(), {}, total_memory())


def available_cores() -> int:
    """Cores that this process may run on; containers and taskset often leave fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of memory of this machine."""
    return int(psutil.virtual_memory().total)


def count_gpus(devices: Path = Path("/dev"), visible: str | None = None) -> int:
    """NVIDIA devices of this machine, without loading a driver library.

    Args:
        visible: value of CUDA_VISIBLE_DEVICES; default: the environment's.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    present = sum(1 for entry in devices.glob("nvidia[0-9]*") if entry.name.removeprefix("nvidia").isdigit())
    if visible is None:
        return present
    chosen = [item for item in visible.split(",") if item.strip() not in ("", "-1", "NoDevFiles")]
    return min(present, len(chosen))


def nodes_from_ray(nodes: list[dict[str, Any]], free: Mapping[str, Mapping[str, float]], *, local: bool) -> list[Node]:
    """Ray's view as ours: `ray.nodes()` joined with the free resources by node id, dead nodes left out.

    Args:
        local: the cluster is this machine alone, where logical CPUs were set to what the ranks need.
    """
    inventory = []
    for raw in nodes:
        if not raw.get("Alive"):
            continue
        available = free.get(raw["NodeID"], {})
        total_cpus = int(raw.get("Resources", {}).get("CPU", 0))
        inventory.append(
            Node(
                node_id=raw["NodeID"],
                host=raw["NodeManagerAddress"],
                cpus=int(available.get("CPU", 0)),
                gpus=int(available.get("GPU", 0)),
                cores=available_cores() if local else max(1, total_cpus),
                labels=dict(raw.get("Labels") or {}),
                memory_bytes=total_memory() if local else 0,
            )
        )
    return sorted(inventory, key=lambda node: node.node_id)
