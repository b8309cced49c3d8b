"""Several routers of one region, in one process or each in its own, over one ledger: what resumption is tested on."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.config import parse_config
from cluster.ledger.database import SqliteDatabase
from cluster.router.main import serve
from tests.support.fake_replica import FakeDirectory, FakeReplica
from tests.support.router_world import MODEL

_ROUTER = """
import sys
from pathlib import Path
from cluster.config import load_config
from cluster.router.main import run
run(load_config(Path(sys.argv[1])), on_listening=lambda address: print(address, flush=True))
"""


def router_config(checkpoint: Path, directory: str, ledger: Path, **router: Any) -> dict[str, Any]:
    """One router's configuration, before it is parsed."""
    return {
        "models": [{"name": MODEL, "path": str(checkpoint)}],
        "router": {"listen": "127.0.0.1:0", **router},
        "controller": {"listen": directory},
        "ledger": {"path": str(ledger), "lease_seconds": 3},
    }


class RouterProcess:
    """A router that tests kill, stop and end."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.address = address

    @classmethod
    async def start(cls, config: dict[str, Any], path: Path) -> RouterProcess:
        path.write_text(json.dumps(config))  # noqa: ASYNC240 (small, and only a test waits)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _ROUTER, str(path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        address = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        return cls(process, address)

    async def end(self) -> None:
        """Kill it unless it has ended."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self.process._transport.close()  # type: ignore[attr-defined] # asyncio leaves its pipes open otherwise


class InnerRouter:
    """A router in this process."""

    def __init__(self, serving: asyncio.Task[None], stop: asyncio.Event, cut: asyncio.Event, address: str) -> None:
        self.serving = serving
        self.stop = stop
        self.cut = cut
        self.address = address


@asynccontextmanager
async def inner_router(config: dict[str, Any], **parts: Any) -> AsyncIterator[InnerRouter]:
    """A router in this process; `parts` as `serve` takes them."""
    stop, cut = asyncio.Event(), asyncio.Event()
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(
            parse_config(config),
            stop=stop,
            cut=cut,
            on_listening=listening.set_result,
            rng=random.Random(1),
            **parts,
        )
    )
    await asyncio.wait([listening, serving], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    try:
        yield InnerRouter(serving, stop, cut, listening.result())
    finally:
        stop.set()
        cut.set()
        await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def region_of_routers(
    checkpoint: Path, tmp_path: Path, replica: FakeReplica, count: int = 2, **router: Any
) -> AsyncIterator[list[InnerRouter]]:
    """`count` routers of this process over one ledger, in front of one fake replica."""
    replica.model, replica.replica_id = MODEL, f"{MODEL}/0"
    async with AsyncExitStack() as stack:
        await replica.start()
        stack.push_async_callback(replica.kill)
        directory = FakeDirectory(replica)
        config = router_config(checkpoint, await directory.start(), tmp_path / "ledger.db", **router)
        stack.push_async_callback(directory.stop)
        yield [await stack.enter_async_context(inner_router(config)) for _ in range(count)]


async def rows_of(path: Path, columns: str) -> list[tuple[Any, ...]]:
    """What a ledger's file holds, settled or not."""
    database = SqliteDatabase(path)
    try:
        return [tuple(row) for row in database.query(f"SELECT {columns} FROM requests ORDER BY opened_at")]
    finally:
        database.close()
