"""`argosy apply` on a real region: a replica is cut anew under a stream, and a model is added that routers learn."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from tests.support.region import ARGOSY, START_SECONDS, CommandRun, free_ports
from tests.support.stream import Stream

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = "smollm2-135m-instruct"


class Region:
    """`argosy up` with one replica of one rank, and room for more."""

    def __init__(self, directory: Path, checkpoint: Path) -> None:
        self.router, self.controller = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.file = directory / "argosy.yaml"
        self._checkpoint = checkpoint
        self.write({})
        self.run = CommandRun(directory, "up", "-f", self.file)

    def write(self, change: dict[str, Any], **models: dict[str, Any]) -> None:
        """Say what is wanted: the model with a change, and more models under other names."""
        fixed = {"device": "cpu", "context_length": 256, "threads_per_rank": 1, "engine": {"kv_cache": "32MiB"}}
        sections = [{"name": MODEL, **fixed, **change}]
        sections += [{"name": name, "path": str(self._checkpoint), **fixed, **more} for name, more in models.items()]
        configuration = {
            "models": sections,
            "ray": {"num_cpus": 8},
            "router": {"listen": self.router, "drain_seconds": 2},
            "controller": {"listen": self.controller},
            "ledger": {"store": "memory"},
        }
        self.file.write_text(json.dumps(configuration))

    def status(self) -> list[control_pb2.ReplicaStatus]:
        with grpc.insecure_channel(self.controller) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            return list(stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5).replicas)


@pytest.fixture
def region(smollm2_dir: Path, tmp_path: Path) -> Iterator[Region]:
    running = Region(tmp_path, smollm2_dir)
    try:
        running.run.wait_said("Ctrl-C ends it.", START_SECONDS)
        yield running
        running.run.process.terminate()
        assert running.run.wait() == 0, running.run.text
        running.run.assert_nothing_left()
    finally:
        running.run.kill_all()


def argosy(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ARGOSY, *map(str, arguments)], capture_output=True, text=True, timeout=150, check=False)


def test_a_shape_changes_under_a_stream_and_a_model_is_added(region: Region) -> None:
    region.write({"tensor_parallel": 2}, again={})
    planned = argosy("apply", "-f", region.file, "--plan")
    assert planned.returncode == 0, planned.stderr
    assert f"{MODEL}/0" in planned.stdout
    assert "tensor_parallel 1 -> 2" in planned.stdout
    assert [len(replica.ranks) for replica in region.status()] == [1]
    with Stream(region.router, MODEL, max_tokens=150) as stream:
        stream.wait_for(10)
        applied = argosy("apply", "-f", region.file, "--grace", "0")
        assert applied.returncode == 0, applied.stdout + applied.stderr
        assert "Applied" in applied.stdout
        stream.wait_for_end()
    assert stream.error is None
    assert stream.tokens == 150
    ranks = {replica.replica_id: len(replica.ranks) for replica in region.status()}
    assert ranks == {f"{MODEL}/0": 2, "again/0": 1}
    asked = argosy("generate", "--address", region.router, "--model", "again", "--max-tokens", "4", "Hi")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert "Nothing differs" in argosy("apply", "-f", region.file).stdout
    region.write({"pipeline_parallel": 99})
    refused = argosy("apply", "-f", region.file)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "impossible" in refused.stderr
