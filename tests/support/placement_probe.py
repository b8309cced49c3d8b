"""`python -m tests.support.placement_probe ADDRESS CHECKPOINT`: what Ray reserves for a replica on a cluster, as JSON.

Asks for four tensor ranks on GPUs. Starts no role, so the GPUs need not exist.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from cluster.config import PeersConfig, RayConfig, parse_config
from cluster.control.plan import plan_replica, wanted_replicas
from cluster.control.ray_backend import RayBackend, ask_for_group
from cluster.ids import Epoch, RegionId

RESERVE_SECONDS = 120.0


def main(address: str, checkpoint: Path) -> None:
    ray.init(address=address, log_to_driver=False)
    section = {"name": checkpoint.name, "device": "cuda", "tensor_parallel": 4, "engine": {"allow_untested_gpu": True}}
    config = parse_config({"model_store": str(checkpoint.parent), "models": [section]})
    nodes = asyncio.run(RayBackend(RayConfig(address=address)).inventory())
    (wanted,) = wanted_replicas(config)
    plan = plan_replica(wanted, nodes, num_ranks=4)
    group = ask_for_group(plan, plan.spec(RegionId("test"), Epoch(1), b"", PeersConfig()))
    assert group.wait(RESERVE_SECONDS), placement_group_table(group)
    reserved = placement_group_table(group)["bundles_to_node_id"]
    remove_placement_group(group)
    answer = {
        "domains": {node.node_id: node.link_domain for node in nodes},
        "planned": [rank.node.node_id for rank in plan.ranks],
        "bundles": group.bundle_specs,
        "reserved": [reserved[index] for index in range(len(group.bundle_specs))],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
