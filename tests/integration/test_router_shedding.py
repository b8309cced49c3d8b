"""Sheddable requests are refused at the door when no replica can serve them in time; interactive ones are served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from argosy.internal.v1 import replica_pb2
from cluster import rpc
from cluster.errors import Reason
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.router_world import request, router_world, run_async

pytestmark = pytest.mark.model


class Overloaded(FakeReplica):
    """Says that hours of prompts wait before the next one."""

    def _load(self) -> replica_pb2.Load:
        load = super()._load()
        load.pending_prefill_tokens = 10**8
        return load


def replica(kind: type[FakeReplica] = FakeReplica, **options: Any) -> FakeReplica:
    return kind(hashed_tokens(range(1000, 20000)), **{"step_seconds": 0.005, **options})


@pytest.mark.parametrize("priority", ["PRIORITY_CLASS_SHEDDABLE", "PRIORITY_CLASS_BATCH"])
@run_async
async def test_what_can_wait_is_refused_early_and_told_for_how_long(smollm2_dir: Path, priority: str) -> None:
    overloaded = replica(Overloaded)
    async with router_world(smollm2_dir, overloaded) as world:
        await world.until_ready(1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.generate(request(max_tokens=5, priority_class=priority))
        error = rpc.to_service_error(caught.value)
        assert error.reason is Reason.OVERLOADED
        assert error.retry_after == 60.0
        assert "first token" in error.quotas[0].description
        assert not overloaded.submits
        assert not world.ledger.open_rows
        assert world.ledger.settled == 0, "what was refused at the door has no row"
        assert len((await world.generate(request(max_tokens=5))).token_ids()) == 5, "interactive ones are served"


@run_async
async def test_one_replica_with_room_is_enough(smollm2_dir: Path) -> None:
    overloaded, idle = replica(Overloaded), replica()
    async with router_world(smollm2_dir, overloaded, idle) as world:
        await world.until_ready(2)
        asks = [request(max_tokens=5, priority_class="PRIORITY_CLASS_SHEDDABLE") for _ in range(6)]
        await asyncio.gather(*map(world.generate, asks))
    assert len(idle.submits) == 6
    assert not overloaded.submits
