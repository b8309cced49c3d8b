"""A router that its controller sends away: running answers finish, nothing new begins, and it ends by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from cluster import rpc
from cluster.errors import Reason
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.router_world import request, router_world, run_async

pytestmark = pytest.mark.model


@run_async
async def test_it_finishes_and_ends(smollm2_dir: Path) -> None:
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.01)
    async with router_world(smollm2_dir, fake, router={"drain_seconds": 30}) as world:
        running = asyncio.create_task(world.generate(request(max_tokens=100)))
        await world.until(lambda: fake.most_emitted >= 10)
        world.directory.sends_routers_away = True
        await world.until(world.stop.is_set)
        refused = None
        while refused is None and not running.done():
            try:
                await world.generate(request(max_tokens=1))
            except grpc.aio.AioRpcError as error:
                refused = rpc.to_service_error(error).reason
        assert refused is Reason.SHUTTING_DOWN
        assert len((await running).token_ids()) == 100
        await asyncio.wait_for(world.serving, 20)


@run_async
async def test_another_regions_controller_sends_nobody_away(smollm2_dir: Path) -> None:
    fake = FakeReplica(hashed_tokens(range(1000, 20000)))
    async with router_world(smollm2_dir, fake) as world:
        world.directory.region, world.directory.sends_routers_away = "other", True
        version = world.directory.version
        await world.until(lambda: world.directory.version > version + 5)
        assert not world.stop.is_set()
        assert (await world.generate(request(max_tokens=3))).finished.usage.completion_tokens == 3
