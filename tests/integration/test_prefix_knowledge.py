"""A prompt that one router has warmed is found by another: by block events near by, by summaries from another region.

Real engines and schedulers with their real prefix caches; ranks are the paged fake.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from argosy.internal.v1 import control_pb2
from cluster.control.report import directory_entry
from cluster.ids import ModelName, ReplicaId
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.replicas import Replica, replica_spec, running_replica
from tests.support.router_world import MODEL, World, request, router_world, run_async

pytestmark = pytest.mark.model

PROMPT_TOKENS = 320
WHOLE_BLOCKS = PROMPT_TOKENS - 16
"""Of a cached prompt's tokens at least so many are found: the last one is always computed."""


class Listing(FakeReplica):
    """A real replica's entry in a directory, as a controller would write it."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(hashed_tokens([1]))
        self.replica = replica
        self.status = control_pb2.ReplicaStatus()
        self.prefill_per_token = 1e-3
        self._polling = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        while True:
            self.status = await self.replica.status()
            await asyncio.sleep(0.05)

    def entry(self) -> control_pb2.DirectoryEntry:
        entry = directory_entry(self.status)
        coefficients = control_pb2.StepCoefficients(prefill_per_token=self.prefill_per_token, decode_base=0.01)
        entry.coefficients.CopyFrom(coefficients)
        return entry

    def stop(self) -> None:
        self._polling.cancel()


@asynccontextmanager
async def engines(checkpoint: Path, count: int) -> AsyncIterator[list[Listing]]:
    """Replicas with one rank each."""
    async with AsyncExitStack() as stack:
        listings = []
        for number in range(count):
            spec = replica_spec(checkpoint, num_blocks=512, context_length=2048)
            spec = dataclasses.replace(spec, replica_id=ReplicaId(f"{MODEL}/{number}"), model=ModelName(MODEL))
            replica = await stack.enter_async_context(running_replica(spec, "--fake", "0.002"))
            listings.append(Listing(replica))
            stack.callback(listings[-1].stop)
        for listing in listings:
            await listing.replica.wait_for(control_pb2.REPLICA_STATE_READY)
        yield listings


async def cached_tokens(world: World, prompt: list[int]) -> int:
    """Ask, and say how much of the prompt was in the cache of whoever answered."""
    ask = request(token_ids={"ids": prompt}, max_tokens=2, stop={"ignore_end_of_text": True})
    return (await world.generate(ask)).finished.usage.cached_prompt_tokens


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(900) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


@run_async
async def test_what_one_router_warmed_another_of_the_region_finds(smollm2_dir: Path) -> None:
    async with (
        engines(smollm2_dir, 2) as listings,
        router_world(smollm2_dir) as first,
        router_world(smollm2_dir) as second,
    ):
        for world in (first, second):
            world.directory.replicas = list(listings)
            await world.until_ready(2)
        for prompt in prompts(8):
            assert await cached_tokens(first, prompt) == 0
            # The news travel with the next report, which may be behind the answer by a heartbeat.
            await asyncio.sleep(0.5)
            assert await cached_tokens(second, prompt) >= WHOLE_BLOCKS


@asynccontextmanager
async def two_regions(checkpoint: Path, round_trip: float) -> AsyncIterator[tuple[World, World, Listing, Listing]]:
    """A router at home that knows the west, and one in the west; a replica in each."""
    async with engines(checkpoint, 2) as (at_home, in_west), router_world(checkpoint, region="west") as west:
        west.directory.replicas = [in_west]
        section = {
            "name": "west",
            "controllers": [west.directory.address],
            "injected_round_trip_seconds": round_trip,
        }
        async with router_world(checkpoint, regions=[section]) as home:
            home.directory.replicas = [at_home]
            await west.until_ready(1)
            await home.until_ready(2)
            yield home, west, at_home, in_west


async def summary_has_arrived(west: World, in_west: Listing, blocks: int) -> None:
    """The west's directory has told of so many blocks, and has been read since."""
    await west.until(lambda: len(in_west.status.prefixes.names) >= blocks)
    version = west.directory.version
    await west.until(lambda: west.directory.version > version + 20)


@run_async
async def test_a_prefix_warm_in_another_region_is_used_when_that_is_cheaper_and_not_otherwise(
    smollm2_dir: Path,
) -> None:
    far, near = prompts(2)
    blocks = 2 * (PROMPT_TOKENS // 16)
    async with two_regions(smollm2_dir, round_trip=0.1) as (home, west, at_home, in_west):
        for prompt in (far, near):
            assert await cached_tokens(west, prompt) == 0
        await summary_has_arrived(west, in_west, blocks)
        for listing in (at_home, in_west):
            listing.prefill_per_token = 1e-2  # 3.2 s to compute it at home, 0.1 s to go where it is
        await summary_has_arrived(west, in_west, blocks)
        assert await cached_tokens(home, far) >= WHOLE_BLOCKS
        for listing in (at_home, in_west):
            listing.prefill_per_token = 1e-5  # 3 ms to compute it
        await summary_has_arrived(west, in_west, blocks)
        assert at_home.status.load.missed_tokens == 0
        assert await cached_tokens(home, near) == 0
        await home.until(lambda: at_home.status.load.missed_tokens >= PROMPT_TOKENS)
