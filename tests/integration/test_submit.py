"""`argosy submit` against a real Ray head in token mode: a batch cut by kill -9, a region whose nodes come and go."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import requests

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from tests.support.ray_head import RayHead
from tests.support.region import ARGOSY, free_ports, marked, wait_until
from tests.support.stream import Stream

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = "smollm2-135m-instruct"
READY = control_pb2.REPLICA_STATE_READY
LINES = 24


@pytest.fixture(scope="module")
def head(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head with room for an engine and one rank."""
    with RayHead(tmp_path_factory.mktemp("ray"), cpus=2) as running:
        yield running


def argosy(head: RayHead, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ARGOSY, *map(str, arguments)],
        env={**head.environment, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def submitted(head: RayHead, *arguments: object) -> str:
    """The id of a job that was just handed over."""
    run = argosy(head, "submit", *arguments, "--address", head.jobs, "--no-follow")
    assert run.returncode == 0, run.stderr
    return next(word for word in run.stdout.split() if word.startswith("raysubmit_"))


def configuration(directory: Path, **model: object) -> tuple[Path, str, str]:
    """A region's file, its router and its controller."""
    router, controller = (f"127.0.0.1:{port}" for port in free_ports(2))
    section = {"name": MODEL, "device": "cpu", "context_length": 256, "engine": {"kv_cache": "32MiB"}, **model}
    file = directory / "serve.yaml"
    file.write_text(
        json.dumps(
            {
                "models": [section],
                "router": {"listen": router, "drain_seconds": 60},
                "controller": {"listen": controller},
                "ledger": {"store": "memory"},
            }
        )
    )
    return file, router, controller


def test_what_the_head_refuses_is_said_in_one_line(head: RayHead, tmp_path: Path) -> None:
    file, _, _ = configuration(tmp_path)
    stranger = argosy(head, "submit", file, "--address", head.jobs, RAY_AUTH_TOKEN_PATH="", RAY_AUTH_TOKEN="0" * 64)
    assert stranger.returncode == 1
    assert "wants its token: set RAY_AUTH_MODE=token" in stranger.stderr
    unknown = argosy(head, "submit", "--status", "raysubmit_none", "--address", head.jobs)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "there is no job 'raysubmit_none'" in unknown.stderr
    (port,) = free_ports(1)
    nobody = argosy(head, "submit", file, "--address", f"http://127.0.0.1:{port}")
    assert "no Ray head answers" in nobody.stderr


def test_a_batch_goes_on_after_kill_9_and_every_line_is_there_once(head: RayHead, tmp_path: Path) -> None:
    file, _, _ = configuration(tmp_path)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [{"id": f"{n}", "prompt": f"Count from {n}:", "max_tokens": 12, "temperature": 0} for n in range(LINES)]
    prompts[7]["temperature"] = 9
    source.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts) + "nonsense\n")
    arguments = (file, "--batch", source, "--out", out, "--concurrency", 4)
    first = submitted(head, *arguments)
    wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") >= LINES // 2, 120, "half of the answers")
    (driver,) = (process for process in marked(head.mark) if "--batch" in process.cmdline())
    driver.kill()
    before = out.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    kept = whole.count(b"\n")
    assert LINES // 2 <= kept < LINES + 1
    assert argosy(head, "submit", "--logs", first, "--address", head.jobs).returncode == 1

    again = argosy(head, "submit", *arguments, "--address", head.jobs)
    assert again.returncode == 0, again.stdout
    assert f"holds {kept} lines already" in again.stdout
    assert out.read_bytes().startswith(whole)
    records = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert sorted(record["id"] for record in records) == sorted([*(str(n) for n in range(LINES)), f"line-{LINES + 1}"])
    refused = {record["id"]: record["error"] for record in records if "error" in record}
    assert {key: (error["line"], error["field"]) for key, error in refused.items()} == {
        "7": (8, "temperature"),
        f"line-{LINES + 1}": (LINES + 1, None),
    }
    assert all(record["usage"]["completion_tokens"] for record in records if "error" not in record)
    assert not replicas_left(head)


def replicas_left(head: RayHead) -> list[psutil.Process]:
    """Engines, ranks and routers that still run."""
    return [
        process
        for process in marked(head.mark)
        if "cluster.cli" in (line := " ".join(process.cmdline())) or "RoleHost" in line
    ]


def test_a_region_runs_as_a_job_over_nodes_that_come_and_go(head: RayHead, tmp_path: Path) -> None:
    file, router, controller = configuration(tmp_path, pipeline_parallel=2)
    second = head.add_node(cpus=1)
    job = submitted(head, file)
    wait_ready(head, job, controller, epoch=1)
    assert len({rank.pid for rank in status(controller).ranks}) == 2
    with Stream(router, MODEL, max_tokens=200) as stream:
        stream.wait_for(5)
        third = head.add_node(cpus=1)
        head.remove_node(second)
        wait_ready(head, job, controller, epoch=2)
        stream.wait_for(120)
        assert "RUNNING" in argosy(head, "submit", "--status", job, "--address", head.jobs).stdout
        # Ctrl-C at the logs leaves the job alone; a stop lets running answers finish.
        logs = subprocess.Popen(
            [*ARGOSY, "submit", "--logs", job, "--address", head.jobs],
            env=head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seen = ""
        while "Ready after" not in seen:
            seen += logs.stdout.readline() or pytest.fail(seen)
        logs.send_signal(signal.SIGINT)
        assert "the job goes on" in logs.communicate(timeout=60)[0]
        assert logs.returncode == 130
        assert "STOPPED" in argosy(head, "submit", "--stop", job, "--address", head.jobs).stdout
        stream.wait_for_end()
    assert stream.error is None
    assert stream.tokens == 200
    wait_until(lambda: not replicas_left(head), 30, "the end of all that the job started")
    head.remove_node(third)


def status(controller: str) -> control_pb2.ReplicaStatus:
    with grpc.insecure_channel(controller) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)
        (replica,) = stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5).replicas
        return replica


def wait_ready(head: RayHead, job: str, controller: str, epoch: int) -> None:
    def holds() -> bool:
        described = requests.get(f"{head.jobs}/api/jobs/{job}", headers=head.authorization, timeout=10).json()
        assert described["status"] in ("PENDING", "RUNNING"), described["message"]
        return is_ready(controller, epoch)

    wait_until(holds, 120, f"a ready replica at epoch {epoch}")


def is_ready(controller: str, epoch: int) -> bool:
    try:
        replica = status(controller)
    except (grpc.RpcError, ValueError):
        return False
    return (replica.state, replica.epoch >= epoch) == (READY, True)
