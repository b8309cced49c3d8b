"""The router as a process: quick to serve, ended by SIGTERM with what runs finished, one line for a bad start."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml

from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from tests.support.fake_replica import FakeDirectory, FakeReplica, hashed_tokens
from tests.support.router_world import MODEL, request, run_async

pytestmark = pytest.mark.model

PROGRAM = """
import sys
from pathlib import Path
from cluster.config import load_config
from cluster.router.main import run
run(load_config(Path(sys.argv[1])), on_listening=lambda address: print(address, flush=True))
assert not {"torch", "ray", "transformers", "numpy"} & sys.modules.keys(), "the router must start without them"
"""


@asynccontextmanager
async def router_process(tmp_path: Path, checkpoint: Path, directory: str) -> AsyncIterator[tuple[Any, str]]:
    """A router in a process of its own, and the line that it prints when it listens."""
    file = tmp_path / "argosy.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "models": [{"name": MODEL, "path": str(checkpoint)}],
                "router": {"listen": "127.0.0.1:0"},
                "controller": {"listen": directory},
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(file), stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    try:
        assert process.stdout is not None
        yield process, (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined] # asyncio leaves its pipes open otherwise


@run_async
async def test_sigterm_finishes_what_runs_and_exits_cleanly(smollm2_dir: Path, tmp_path: Path) -> None:
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), model=MODEL, step_seconds=0.01)
    await fake.start()
    directory = FakeDirectory(fake)
    await directory.start()
    try:
        async with router_process(tmp_path, smollm2_dir, directory.address) as (process, address):
            async with rpc.channel(address, link=rpc.Link.PUBLIC) as channel:
                stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
                calls = [stub.Generate(request(max_tokens=100), timeout=60) for _ in range(8)]
                first = await asyncio.gather(*(call.read() for call in calls))
                assert all(event.WhichOneof("event") == "started" for event in first)
                process.send_signal(signal.SIGTERM)
                last = await asyncio.gather(*(_last_event(call) for call in calls))
                assert [event.finished.usage.completion_tokens for event in last] == [100] * 8
            assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        await fake.kill()
        await directory.stop()


async def _last_event(call: Any) -> Any:
    last = event = await call.read()
    while event is not grpc.aio.EOF:
        last, event = event, await call.read()
    return last
