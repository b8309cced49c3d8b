"""T14 and T16: an engine killed, and everything restarted in turn, while clients notice nothing. Real Ray and model."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from argosy.client import AsyncClient, RetryPolicy
from argosy.internal.v1 import control_pb2
from tests.support.fault_world import report
from tests.support.region import ARGOSY, CommandRun, UpRun, free_ports
from tests.support.router_world import run_async

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.faults_long, pytest.mark.timeout(900)]

MODEL = "smollm2-135m-instruct"
CLIENTS = 4
READY = control_pb2.REPLICA_STATE_READY
PATIENT = RetryPolicy(max_failures=60)


class TwoReplicas(UpRun):
    """A region with two replicas of one rank each."""

    def __init__(self, directory: Path) -> None:
        router, controller = free_ports(2)
        self.router, self.controller = f"127.0.0.1:{router}", f"127.0.0.1:{controller}"
        self.file = directory / "argosy.yaml"
        engine = {"kv_cache": "64MiB"}
        configuration = {
            "models": [{"name": MODEL, "replicas": 2, "device": "cpu", "threads_per_rank": 1, "engine": engine}],
            "router": {"listen": self.router, "drain_seconds": 3},
            "controller": {"listen": self.controller},
            "metrics": {"router": None, "controller": None, "engines": None},
        }
        self.file.write_text(json.dumps(configuration))
        CommandRun.__init__(self, directory, "up", "-f", self.file)

    def drain(self, *target: str) -> None:
        """`argosy drain …`, until it is done."""
        command = [*ARGOSY, "drain", *target, "--address", self.controller, "--grace", "5"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    def replicas(self) -> dict[str, control_pb2.ReplicaStatus]:
        return {replica.replica_id: replica for replica in self.status().replicas}

    async def until_ready(self) -> None:
        async with asyncio.timeout(300):
            while any(replica.state != READY for replica in self.replicas().values()):
                await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def region(smollm2_dir: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoReplicas]:
    run = TwoReplicas(tmp_path_factory.mktemp("rolling"))
    try:
        run.wait_ready()
        yield run
        assert run.stop() == 0, run.text
    finally:
        run.kill_all()


@asynccontextmanager
async def load(region: TwoReplicas) -> AsyncIterator[list[str]]:
    """Clients that ask the same questions over and over; every answer must be the first one's. Yields what came."""
    async with AsyncClient(region.router, policy=PATIENT) as client:

        async def ask(number: int) -> str:
            events = client.chat(
                MODEL, f"Count upwards from {number}.", max_tokens=60, temperature=0.0, timeout_seconds=300
            )
            return "".join([event.delta.text async for event in events])

        references = await asyncio.gather(*map(ask, range(CLIENTS)))
        answers: list[str] = []
        over = asyncio.Event()

        async def keep_asking(number: int) -> None:
            while not over.is_set():
                answer = await ask(number)
                assert answer == references[number]
                answers.append(answer)

        asking = [asyncio.create_task(keep_asking(number)) for number in range(CLIENTS)]
        try:
            yield answers
            over.set()
            await asyncio.gather(*asking)
        finally:
            for task in asking:
                task.cancel()


@run_async
async def test_t16_restarting_everything_in_turn_loses_nothing(region: TwoReplicas) -> None:
    async with load(region) as answers:
        epochs = {name: replica.epoch for name, replica in region.replicas().items()}
        for name in epochs:
            await asyncio.to_thread(region.drain, "replica", name, "--restart")
            assert region.replicas()[name].state == READY
            assert region.replicas()[name].epoch > epochs[name]
        (router,) = region.status().router_ids
        await asyncio.to_thread(region.drain, "router", router)
        during = len(answers)
        async with asyncio.timeout(120):
            while not region.status().router_ids or len(answers) < during + CLIENTS:
                await asyncio.sleep(0.2)
        assert region.status().router_ids != [router], "another one has taken its place"
    report("T16", len(answers), 0)


@run_async
async def test_t14_streams_of_a_killed_engine_go_on_and_it_is_rebuilt(region: TwoReplicas) -> None:
    await region.until_ready()
    async with load(region) as answers:
        victim = next(iter(region.replicas().values()))
        port = int(victim.address.rpartition(":")[2])
        engine = next(
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        )
        psutil.Process(engine).kill()
        async with asyncio.timeout(300):
            while region.replicas()[victim.replica_id].epoch == victim.epoch:
                await asyncio.sleep(0.2)
        await region.until_ready()
        during = len(answers)
        async with asyncio.timeout(120):
            while len(answers) < during + CLIENTS:
                await asyncio.sleep(0.2)
    report("T14", len(answers), 0)
