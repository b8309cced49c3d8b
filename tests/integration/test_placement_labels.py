"""Labels of real Ray nodes reach the placement, and Ray reserves what was placed: a tensor group over two nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import write_tiny_checkpoint
from tests.support.ray_head import RayHead

pytestmark = pytest.mark.ray


def test_a_tensor_group_spans_the_nodes_of_one_link_domain(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", num_attention_heads=4, num_key_value_heads=4)
    (tmp_path / "ray").mkdir()
    with RayHead(tmp_path / "ray", cpus=1) as head:
        for _ in range(2):
            head.add_node(3, "--num-gpus=2", "--labels=argosy.io/link-domain=switch")
        command = [sys.executable, "-m", "tests.support.placement_probe", head.gcs, str(checkpoint)]
        probe = subprocess.run(
            command, env=head.environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        )
    assert probe.returncode == 0, probe.stderr
    answer = json.loads(probe.stdout.splitlines()[-1])
    joined = [node for node, domain in answer["domains"].items() if domain == "switch"]
    assert len(joined) == 2
    assert sorted(answer["planned"]) == sorted(joined * 2)
    # The engine's CPU is beside the first rank.
    assert answer["bundles"] == [{"CPU": 3.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}]
    assert answer["reserved"] == list(dict.fromkeys(answer["planned"]))
