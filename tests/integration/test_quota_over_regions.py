"""One tenant's limit over two regions with stores of their own: real routers, real leases, never one token too many."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from argosy.v1 import admin_pb2
from cluster.errors import Reason, ServiceError
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.guarded_world import Credentials, GuardedWorld, bearer, guarded_world
from tests.support.region import free_ports
from tests.support.router_world import request, run_async

pytestmark = pytest.mark.model

LIMIT = 10 * 51
ASK = request(token_ids={"ids": [1]}, max_tokens=50)


def replica() -> FakeReplica:
    return FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.001)


async def completed(world: GuardedWorld, credentials: Credentials, count: int) -> int:
    """How many of so many requests at once are served to their end."""
    asks = (world.generate(ASK, credentials) for _ in range(count))
    results = await asyncio.gather(*asks, return_exceptions=True)
    for result in results:
        assert not isinstance(result, BaseException) or (
            isinstance(result, ServiceError) and result.reason is Reason.QUOTA_EXCEEDED
        ), result
    return sum(not isinstance(result, BaseException) for result in results)


@run_async
async def test_one_hard_limit_holds_over_two_regions(smollm2_dir: Path, tmp_path: Path) -> None:
    """T32 and T19's quota: 200 at once in two regions, then the home is lost."""
    east_port, north_port = free_ports(2)

    def sections(name: str, port: int) -> dict[str, Any]:
        router = {"listen": "127.0.0.1:0", "drain_seconds": 1, "quota_listen": f"127.0.0.1:{port}"}
        east = {"name": "east", "controllers": ["127.0.0.1:1"], "quota": [f"127.0.0.1:{east_port}"]}
        return {"region": name, "router": router, "regions": [east] if name != "east" else []}

    tenant: dict[str, Any] = {"home_region": "east", "limits": {"tokens_per_month": LIMIT}}
    async with AsyncExitStack() as stack:
        home_stack = await stack.enter_async_context(AsyncExitStack())
        (tmp_path / "east").mkdir()
        (tmp_path / "north").mkdir()
        east = await home_stack.enter_async_context(
            guarded_world(smollm2_dir, tmp_path / "east", replica(), **sections("east", east_port))
        )
        north = await stack.enter_async_context(
            guarded_world(smollm2_dir, tmp_path / "north", replica(), **sections("north", north_port))
        )
        at_home, abroad = await east.tenant("acme", **tenant), await north.tenant("acme", **tenant)
        assert await completed(north, abroad, 1) == 1, "the first one waits for its slice and is served"
        served = 1 + sum(await asyncio.gather(completed(east, at_home, 100), completed(north, abroad, 100)))
        assert 5 <= served <= 10
        for _ in range(5):
            served += await completed(north, abroad, 2)
        served += await completed(east, at_home, 10)
        assert 8 <= served <= 10, "a region holds back at most its share"
        statement = "SELECT COALESCE(SUM(prompt_tokens + completion_tokens), 0) FROM requests"
        await east.until_settled()
        await north.until_settled()
        [(here,)], [(there,)] = await east.query(statement), await north.query(statement)
        assert here + there == 51 * served <= LIMIT
        roomy = admin_pb2.TenantPolicy(home_region="east", limits=admin_pb2.Limits(tokens_per_month=100 * 51))
        for world in (east, north):
            changed = admin_pb2.SetTenantRequest(tenant=admin_pb2.Tenant(tenant="roomy", policy=roomy))
            await world.administration.set_tenant(changed, "test")
        abroad = bearer(await north.key("roomy"))
        assert await completed(north, abroad, 1) == 1
        await home_stack.aclose()
        async with asyncio.timeout(60):
            alone = 0
            while (more := await completed(north, abroad, 4)) > 0:
                alone += more
        assert 0 < alone <= 2 * 100 // 8 + 1, "without its home a region has its slice and no more"
