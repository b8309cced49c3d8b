"""Several router processes on one port: connections are dealt out, and one that dies is not missed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from tests.support.fake_replica import FakeDirectory, FakeReplica, hashed_tokens
from tests.support.region import free_ports
from tests.support.router_world import MODEL, request, run_async

pytestmark = pytest.mark.model


async def start_router(file: Path) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "cluster.cli", "router", "--exit-with-parent", "-f", str(file)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stderr=asyncio.subprocess.DEVNULL)


@asynccontextmanager
async def routers(
    checkpoint: Path, folder: Path, count: int, step_seconds: float
) -> AsyncIterator[tuple[str, list[asyncio.subprocess.Process], FakeReplica]]:
    """`count` processes of one configuration, all of them ready."""
    async with AsyncExitStack() as stack:
        replica = FakeReplica(hashed_tokens(range(1000, 20000)), model=MODEL, step_seconds=step_seconds)
        await replica.start()
        stack.push_async_callback(replica.kill)
        directory = FakeDirectory(replica)
        await directory.start()
        stack.push_async_callback(directory.stop)
        address = f"127.0.0.1:{free_ports(1)[0]}"
        file = folder / "argosy.json"
        sections = {
            "models": [{"name": MODEL, "path": str(checkpoint)}],
            "router": {"listen": address, "processes": 2, "drain_seconds": 0},
            "controller": {"listen": directory.address},
            "ledger": {"store": "memory"},
            "metrics": {"router": "127.0.0.1:0"},
        }
        await asyncio.to_thread(file.write_text, json.dumps(sections))
        processes = [await start_router(file) for _ in range(count)]
        try:
            async with asyncio.timeout(60):
                while replica.num_routers < count:
                    assert all(process.returncode is None for process in processes)
                    await asyncio.sleep(0.05)
            yield address, processes, replica
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def ask(address: str, **fields: Any) -> int:
    """Tokens of an answer, over a connection of its own."""
    async with rpc.channel(address, link=rpc.Link.PUBLIC) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        tokens = 0
        async for event in stub.Generate(request(**fields), timeout=60):
            tokens += len(event.delta.token_ids)
        return tokens


def connections(process: asyncio.subprocess.Process, port: int) -> int:
    """Clients of one router process."""
    found = psutil.Process(process.pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)


@run_async
async def test_processes_share_a_port_and_one_that_dies_is_not_missed(smollm2_dir: Path, tmp_path: Path) -> None:
    async with routers(smollm2_dir, tmp_path, 2, step_seconds=0.02) as (address, processes, replica):
        port = int(address.rpartition(":")[2])
        asked = [asyncio.create_task(ask(address, max_tokens=60)) for _ in range(24)]
        async with asyncio.timeout(30):
            while replica.num_streams < 24:
                await asyncio.sleep(0.02)
        served = [connections(process, port) for process in processes]
        assert sum(served) == 24
        # Each connection falls to either with the same chance: all to one happens once in eight million runs.
        assert min(served) > 0
        assert await asyncio.gather(*asked) == [60] * 24
        processes[0].kill()
        await processes[0].wait()
        assert await asyncio.gather(*(ask(address, max_tokens=3) for _ in range(12))) == [3] * 12
