"""Every region's replicas are one pool: cut off, killed and healed regions, and which regions a request may use."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from argosy.internal.v1 import control_pb2
from cluster.clock import SystemClock
from cluster.ids import ModelName, RegionId, RouterId
from cluster.router.fleet import Fleet, ModelTraffic
from cluster.router.regions import Region
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.far_regions import far_region, regions_world
from tests.support.router_world import MODEL, Reply, World, request, router_world, run_async

pytestmark = pytest.mark.model

STREAMS = 12
TOKENS = 120


def replica(**options: Any) -> FakeReplica:
    return FakeReplica(hashed_tokens(range(1000, 20000)), **{"step_seconds": 0.02, **options})


def ask(world: World) -> list[asyncio.Task[Reply]]:
    """Streams long enough for something to happen meanwhile."""
    asks = (request(max_tokens=TOKENS, sampling={"seed": seed}) for seed in range(STREAMS))
    return [asyncio.create_task(world.generate(one)) for one in asks]


async def assert_exact(replies: list[Reply], checkpoint: Path) -> None:
    """Every answer is what an undisturbed router gives."""
    async with router_world(checkpoint, replica(step_seconds=0.002)) as world:
        references = await asyncio.gather(*ask(world))
    assert [reply.token_ids() for reply in replies] == [reference.token_ids() for reference in references]
    assert all(len(reply.token_ids()) == TOKENS for reply in replies)


class Lag:
    """How late the event loop runs at worst: what a busy machine adds to any time measured on it."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            begin = time.monotonic()
            await asyncio.sleep(0.01)
            self.worst = max(self.worst, time.monotonic() - begin - 0.01)

    def stop(self) -> None:
        self._task.cancel()


@run_async
async def test_a_region_that_is_cut_off_is_left_within_a_second_and_returns(smollm2_dir: Path) -> None:
    async with (
        far_region("west", replica(), replica()) as west,
        far_region("south", replica()) as south,
        regions_world(smollm2_dir, [], west, south) as world,
    ):
        running = ask(world)
        await world.until(lambda: all(any(s.most_emitted > 20 for s in r.replicas) for r in (west, south)))
        lag = Lag()
        cut_at = time.monotonic()
        west.black_hole()
        await world.until_ready(1)
        left_after = time.monotonic() - cut_at
        lag.stop()
        assert left_after < 1.0 + 4 * lag.worst
        submitted = sum(len(one.submits) for one in west.replicas)
        replies = await asyncio.gather(*running)
        later = await asyncio.gather(*ask(world))
        west.heal()
        await world.until_ready(3)
        assert sum(len(one.submits) for one in west.replicas) == submitted, "nothing was sent into the hole"
        await asyncio.gather(*ask(world))
        assert sum(len(one.submits) for one in west.replicas) > submitted, "it is used again"
    await assert_exact(replies, smollm2_dir)
    await assert_exact(later, smollm2_dir)


@run_async
async def test_a_regions_load_moves_when_it_dies_and_no_stream_fails(smollm2_dir: Path) -> None:
    async with (
        far_region("west", replica(), replica()) as west,
        far_region("south", replica()) as south,
        regions_world(smollm2_dir, [replica()], west, south) as world,
    ):
        running = ask(world)
        await world.until(lambda: sum(one.num_streams for one in west.replicas) > 0)
        await world.until(lambda: any(one.most_emitted > 20 for one in west.replicas))
        await west.kill()
        replies = await asyncio.gather(*running)
        await world.until_ready(2)
        assert world.prometheus("argosy_router_continuations_total", model=MODEL) > 0
    await assert_exact(replies, smollm2_dir)


@run_async
async def test_a_model_stays_in_its_regions(smollm2_dir: Path) -> None:
    at_home = replica()
    async with (
        far_region("west", replica()) as west,
        far_region("south", replica()) as south,
        regions_world(smollm2_dir, [at_home], west, south, model={"regions": ["south"]}) as world,
    ):
        await asyncio.gather(*ask(world))
    assert len(south.replicas[0].submits) == STREAMS
    assert not at_home.submits
    assert not west.replicas[0].submits


@run_async
async def test_a_controller_of_another_region_is_not_believed(
    smollm2_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at_home, elsewhere = replica(), replica()
    async with far_region("asia", elsewhere) as asia:
        wrong = {"name": "europe", "controllers": [asia.links[-1].address]}
        async with router_world(smollm2_dir, at_home, regions=[wrong]) as world:
            await world.until(lambda: "is a controller of 'asia', not of 'europe'" in caplog.text)
            await asyncio.gather(*ask(world))
    assert not elsewhere.submits


@run_async
async def test_the_next_controller_is_asked_when_one_does_not_answer(smollm2_dir: Path) -> None:
    async with far_region("west", replica()) as west:
        section = {"name": "west", "controllers": ["127.0.0.1:1", west.links[-1].address]}
        async with router_world(smollm2_dir, regions=[section]) as world:
            await world.until_ready(1)


@run_async
async def test_the_round_trip_is_measured_whatever_was_expected() -> None:
    """An injected distance is found by probes, from an expectation that is far off."""
    one = replica(step_seconds=0.005)
    await one.start()
    clock = SystemClock()
    traffic = {ModelName(one.model): ModelTraffic(16, 512)}
    far = Region(RegionId("far"), (), expected_round_trip=2.0, injected_round_trip=0.2)
    fleet = Fleet(RouterId("router"), clock, random.Random(1), traffic, regions=[far])
    try:
        fleet.update(control_pb2.WatchReplicasResponse(region="far", replicas=[one.entry()]))
        (known,) = traffic[ModelName(one.model)].replicas.values()
        async with asyncio.timeout(30):
            while not known.is_eligible:
                await asyncio.sleep(0.01)
            first = known.connection.rtt
            assert 0.2 < first < 2.0, "one measurement moves the expectation, no more"
            while known.connection.rtt > first - 0.3:
                await asyncio.sleep(0.05)
        assert known.connection.rtt > 0.2
        assert known.candidate().rtt == known.connection.rtt
    finally:
        await fleet.close()
        await one.kill()


@pytest.mark.parametrize("allowed", [(), ("west",), ("west", "south"), ("nowhere",)])
@run_async
async def test_a_tenant_stays_in_its_regions(allowed: tuple[str, ...]) -> None:
    """Whatever is cheaper elsewhere."""
    replicas = {name: replica() for name in ("home", "west", "south")}
    traffic = {ModelName("fake"): ModelTraffic(16, 512)}
    fleet = Fleet(RouterId("router"), SystemClock(), random.Random(1), traffic)
    try:
        for name, one in replicas.items():
            await one.start()
            fleet.update(control_pb2.WatchReplicasResponse(region=name, replicas=[one.entry()]))
        async with asyncio.timeout(20):
            while fleet.num_ready(ModelName("fake")) < 3:
                await asyncio.sleep(0.01)
        picks = [fleet.choose(ModelName("fake"), 10, 10, [], set(), allowed) for _ in range(60)]
        found = {choice.replica.target.region for choice in picks if choice is not None}
        assert found <= set(allowed or replicas)
        assert (not found) == (allowed == ("nowhere",))
    finally:
        await fleet.close()
        for one in replicas.values():
            await one.kill()
