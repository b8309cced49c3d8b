"""One file becomes several regions: ports, namespaces, distances, and what memory has no room for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.local_world import PORT_STEP, local_world, replica_bytes, without_replicas, without_room
from cluster.config import ArgosyConfig, parse_config
from cluster.control.plan import ReplicaPlan, plan_region
from cluster.control.topology import Node
from cluster.errors import ConfigurationError
from tests.support.replicas import tiny_directory

GIB = 2**30


def config(path: Path, **sections: Any) -> ArgosyConfig:
    model = {"name": "tiny", "path": str(tiny_directory(path)), "device": "cpu", "tensor_parallel": 2, "replicas": 3}
    return parse_config({"models": [model], **sections})


def plans(world: list[ArgosyConfig]) -> list[list[ReplicaPlan]]:
    node = Node("n", "127.0.0.1", 64, 0, 2, {}, 64 * GIB)
    return [plan_region(region, [node]) for region in world]


def test_every_region_has_its_own_and_knows_the_others(tmp_path: Path) -> None:
    world = local_world(config(tmp_path), 3)
    assert [region.region for region in world] == ["east-us", "west-europe", "southeast-asia"]
    assert len({region.ray.namespace for region in world}) == 3
    listens = [address for region in world for address in (region.router.listen, region.controller.listen)]
    assert len(set(listens)) == 6
    assert listens[2] == f"127.0.0.1:{50051 + PORT_STEP}"
    assert len({region.ledger_path for region in world}) == 3
    for region in world:
        known = {other.name: other.controllers for other in region.regions}
        assert known == {other.region: (other.controller.listen,) for other in world if other is not region}
        assert [(model.replicas, model.tensor_parallel) for model in region.models] == [(1, 1)]
        assert parse_config(region.model_dump(mode="json")) == region, "a child reads it from a file"


def test_distances_are_the_tables_and_the_same_both_ways(tmp_path: Path) -> None:
    world = local_world(config(tmp_path), 3)
    far = {(a.region, b.name): b.injected_round_trip_seconds for a in world for b in a.regions}
    assert far["east-us", "west-europe"] == pytest.approx(0.084, abs=0.005)
    assert far["west-europe", "southeast-asia"] == pytest.approx(0.16, abs=0.02)
    assert all(far[a, b] == far[b, a] for a, b in far)


def test_regions_without_room_do_without_a_replica(tmp_path: Path) -> None:
    world = local_world(config(tmp_path), 3)
    ready = plans(world)
    one = sum(map(replica_bytes, ready[0]))
    enough = next(free for free in range(0, 64 * GIB, one // 8) if _fits(world, ready, free) == 3)
    assert without_room(world, ready, enough) == []
    assert without_room(world, ready, enough - one // 2) == [2]
    assert without_room(world, ready, enough - one - one // 2) == [1, 2]
    assert without_replicas(world[2]).models[0].replicas == 0


def _fits(world: list[ArgosyConfig], ready: list[list[ReplicaPlan]], free: int) -> int:
    try:
        return len(world) - len(without_room(world, ready, free))
    except ConfigurationError:
        return 0


def test_a_machine_without_room_for_one_is_told_how_much_it_takes(tmp_path: Path) -> None:
    world = local_world(config(tmp_path), 2)
    with pytest.raises(ConfigurationError, match=r"--regions: 0\.1 GiB are free, one replica and its regions take"):
        without_room(world, plans(world), GIB // 10)


@pytest.mark.parametrize(
    ("count", "sections", "named"),
    [
        (1, {}, "--regions: 1"),
        (9, {}, "--regions: 9"),
        (3, {"router": {"listen": "127.0.0.1:0"}}, "fixed ports"),
        (3, {"ray": {"address": "10.0.0.1:6379"}}, "ray.address"),
        (3, {"regions": [{"name": "west", "controllers": ["10.0.0.1:50052"]}]}, "regions: the file names regions"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(tmp_path: Path, count: int, sections: dict, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        local_world(config(tmp_path, **sections), count)


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "argosy.yaml"
    file.write_text(config(tmp_path).model_dump_json())
    command = [sys.executable, "-m", "cluster.cli", "up", "-f", str(file), "--regions", "99"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "--regions: 99 is not between 2 and 8" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
