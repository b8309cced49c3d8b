"""A router process killed in the middle of streams: what its clients received is in the ledger."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from cluster.ledger.database import SqliteDatabase
from tests.support.fake_replica import FakeDirectory, FakeReplica, hashed_tokens
from tests.support.ledgers import ledger, rows
from tests.support.router_world import MODEL, request, run_async

pytestmark = pytest.mark.model

ROUTER = """
import sys
from pathlib import Path
from cluster.config import load_config
from cluster.router.main import run
run(load_config(Path(sys.argv[1])), on_listening=lambda address: print(address, flush=True))
"""


async def read(stub: Any, seen: dict[str, int], number: int) -> None:
    """Count what a client receives until the line is cut."""
    name = ""
    try:
        async for event in stub.Generate(request(prompt=f"{number}", max_tokens=4000), timeout=60):
            if event.HasField("started"):
                name = event.started.request_id
            seen[name] = seen.get(name, 0) + len(event.delta.token_ids)
    except grpc.aio.AioRpcError:
        pass


@run_async
async def test_what_clients_received_is_settled(smollm2_dir: Path, tmp_path: Path) -> None:
    """T31 with a router: 16 streams, SIGKILL; the next router of the machine settles them as it starts."""
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), model=MODEL, step_seconds=0.005)
    await fake.start()
    directory = FakeDirectory(fake)
    config = {
        "models": [{"name": MODEL, "path": str(smollm2_dir)}],
        "router": {"listen": "127.0.0.1:0"},
        "controller": {"listen": await directory.start()},
        "ledger": {"path": str(tmp_path / "ledger.db")},
    }
    (tmp_path / "argosy.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-c", ROUTER, str(tmp_path / "argosy.yaml")]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    seen: dict[str, int] = {}
    try:
        assert process.stdout is not None
        address = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        async with rpc.channel(address, link=rpc.Link.PUBLIC) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
            clients = [asyncio.create_task(read(stub, seen, number)) for number in range(16)]
            async with asyncio.timeout(60):
                while len(seen) < 16 or min(seen.values()) < 20:
                    await asyncio.sleep(0.02)
            process.kill()
            await asyncio.gather(*clients)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined] # asyncio leaves its pipes open otherwise
        await fake.kill()
        await directory.stop()
    async with ledger(lambda: SqliteDatabase(tmp_path / "ledger.db"), tmp_path) as books:
        settled = {row[0]: row[1:] for row in await rows(books, "request_id, ending, completion_tokens")}
    assert settled.keys() == seen.keys()
    for name, tokens in seen.items():
        ending, billed = settled[name]
        assert ending == "crashed"
        assert billed >= tokens, "nothing unpaid reached a client"
        # What was on its way when the line was cut, and the mark's lead of at most 50 ms or 32 tokens.
        assert billed <= tokens + 32 + 200
