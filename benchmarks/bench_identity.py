"""What knowing the caller costs: CPU time that a router spends on a call with an API key beyond one without.

One router process answers `ListModels`, turn by turn for nobody and for a tenant; CPU time is the router's own, as the
kernel counts it, both processes' network and Python included.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil

from argosy.v1 import admin_pb2, models_pb2, models_pb2_grpc
from benchmarks.bench_router_relay import ROUTER, cpu_seconds, process
from cluster import rpc
from cluster.cli.management import management
from cluster.config import default_store

CALLS = 1000
TURNS = 7


async def make_key(file: Path) -> str:
    """A tenant and its key, straight into the database."""
    async with management(file, None) as manage:
        await manage("SetTenant", admin_pb2.SetTenantRequest(tenant=admin_pb2.Tenant(tenant="bench")))
        response: admin_pb2.CreateKeyResponse = await manage("CreateKey", admin_pb2.CreateKeyRequest(tenant="bench"))
    return response.secret


async def measure(address: str, router: psutil.Process, metadata: dict[str, tuple[tuple[str, str], ...]]) -> Any:
    """CPU microseconds a call, by kind and turn."""
    spent: dict[str, list[float]] = {kind: [] for kind in metadata}
    async with rpc.channel(address, link=rpc.Link.PUBLIC) as channel:
        stub: Any = models_pb2_grpc.ModelServiceStub(channel)
        for _ in range(TURNS):
            for kind, credentials in metadata.items():
                before = cpu_seconds(router)
                for _ in range(CALLS // 20):
                    calls = [stub.ListModels(models_pb2.ListModelsRequest(), metadata=credentials) for _ in range(20)]
                    await asyncio.gather(*calls)
                spent[kind].append(1e6 * (cpu_seconds(router) - before) / CALLS)
    return spent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "argosy.yaml"
        model = {"name": "bench", "path": str(default_store() / "smollm2-135m-instruct")}
        config = {
            "models": [model],
            "router": {"listen": "127.0.0.1:0"},
            "controller": {"listen": "127.0.0.1:1"},
            "ledger": {"path": f"{folder}/ledger.db"},
        }
        file.write_text(json.dumps(config))
        key = asyncio.run(make_key(file))
        with process("-c", ROUTER, str(file)) as (router, address):
            kinds = {"nobody": (), "API key": (("authorization", f"Bearer {key}"),)}
            spent = asyncio.run(measure(address, router, kinds))
    print(f"{'caller':>10} {'CPU µs a call (median)':>24}")
    for kind, values in spent.items():
        print(f"{kind:>10} {statistics.median(values):>24.0f}")
    more = statistics.median(after - before for before, after in zip(spent["nobody"], spent["API key"], strict=True))
    print(f"an API key costs {more:.0f} µs more a call (median of {TURNS} turns of {CALLS} calls)")


if __name__ == "__main__":
    main()
