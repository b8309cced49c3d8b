"""`argosy up --regions 3` with a real model: one region is killed while its replica answers, and no stream fails."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from tests.support.region import CommandRun, free_ports, marked, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.faults_long]

MODEL = "smollm2-135m-instruct"
STREAMS, TOKENS = 9, 120
FILLER = "The boat went on and the sea was calm, as it had been for many days. " * 12
"""So long that a replica in another region is sooner than a queue at home."""
START_SECONDS = 200.0


class WorldRun(CommandRun):
    """Three regions; the first on the ports of the file, each other ten further."""

    def __init__(self, directory: Path) -> None:
        base = next(port for port in free_ports(20) if port < 65000)
        self.ports = [base + 10 * index for index in range(3)]
        self.file = directory / "argosy.yaml"
        configuration = {
            "models": [{"name": MODEL, "device": "cpu", "context_length": 1024, "engine": {"kv_cache": "96MiB"}}],
            "router": {"listen": f"127.0.0.1:{base}", "drain_seconds": 2},
            "controller": {"listen": f"127.0.0.1:{base + 1}"},
        }
        self.file.write_text(json.dumps(configuration))
        super().__init__(directory, "up", "-f", self.file, "--regions", "3")

    def status(self, region: int) -> control_pb2.GetStatusResponse:
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[region] + 1}") as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            return stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5)

    def processes_of(self, region: int) -> list[psutil.Process]:
        """Whatever serves a region: its command and router, and who listens on its controller's and engine's ports."""
        status = self.status(region)
        ports = {self.ports[region], self.ports[region] + 1}
        ports |= {int(replica.address.rpartition(":")[2]) for replica in status.replicas}
        ranks = {rank.pid for replica in status.replicas for rank in replica.ranks}
        found = []
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                listens = {one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
                is_command = f"{status.region}.json" in " ".join(process.cmdline())
                if listens & ports or process.pid in ranks or is_command:
                    found.append(process)
        return found

    def busy(self, region: int) -> int:
        """Answers that its replica is at."""
        return sum(replica.load.running + replica.load.waiting for replica in self.status(region).replicas)


def ask(router: int, seed: int) -> tuple[list[int], float]:
    """The tokens of an answer, and the longest time without news in it."""
    tokens: list[int] = []
    longest, last = 0.0, 0.0
    with grpc.insecure_channel(f"127.0.0.1:{router}") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = api.GenerateRequest(
            model=MODEL,
            prompt=f"Story number {seed} begins. {FILLER}",
            max_tokens=TOKENS,
            sampling={"seed": seed},
            stop={"ignore_end_of_text": True},
        )
        for event in stub.Generate(request, timeout=280):
            if event.WhichOneof("event") == "delta":
                now = time.monotonic()
                longest, last = max(longest, now - last) if last else 0.0, now
                tokens += event.delta.token_ids
    return tokens, longest


def test_a_region_is_killed_and_no_stream_fails(tmp_path: Path) -> None:
    run = WorldRun(tmp_path)
    try:
        run.wait_said("Ctrl-C ends it.", START_SECONDS)
        assert [run.status(region).region for region in range(3)] == ["east-us", "west-europe", "southeast-asia"]
        memory = sum(process.memory_full_info().pss for process in marked(run.mark))
        with ThreadPoolExecutor(2 * STREAMS) as pool:
            asked = [pool.submit(ask, run.ports[0], seed) for seed in range(STREAMS)]
            wait_until(lambda: sum(run.busy(region) > 0 for region in (1, 2)) > 0, 60, "streams in other regions")
            victim = max((1, 2), key=run.busy)
            name, at_work = run.status(victim).region, run.busy(victim)
            assert at_work
            for process in run.processes_of(victim):
                process.kill()
            replies = [one.result() for one in asked]
            again = list(pool.map(ask, [run.ports[0]] * STREAMS, range(STREAMS)))
        run.wait_said(f"region {name} ended", 30)
        assert all(len(tokens) == TOKENS for tokens, _ in replies)
        assert [tokens for tokens, _ in again] == [tokens for tokens, _ in replies], "exactly the undisturbed answers"
        print(
            f"memory {memory / 2**30:.2f} GiB, {at_work} of {STREAMS} streams were at {name}, "
            f"longest pause {max(gap for _, gap in replies):.2f} s, undisturbed {max(gap for _, gap in again):.2f} s"
        )
        run.process.terminate()
        assert run.wait(90) == 0
        run.assert_nothing_left(20)
    finally:
        run.kill_all()
