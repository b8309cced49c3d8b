"""Other regions for a router under test: directories and replicas of their own, each behind a link that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.fake_replica import FakeDirectory, FakeReplica
from tests.support.router_world import MODEL, World, router_world
from tests.support.tcp_proxy import TcpProxy


@dataclass
class FarRegion:
    """One region that is not the router's."""

    name: str
    directory: FakeDirectory
    replicas: list[FakeReplica]
    links: list[TcpProxy] = field(default_factory=list)

    def black_hole(self) -> None:
        """Its packets vanish, both ways; nobody is told."""
        for link in self.links:
            link.black_hole()

    def heal(self) -> None:
        for link in self.links:
            link.heal()

    async def kill(self) -> None:
        """Everything in it ends at once."""
        await asyncio.gather(self.directory.stop(), *(replica.kill() for replica in self.replicas))


@asynccontextmanager
async def far_region(name: str, *replicas: FakeReplica) -> AsyncIterator[FarRegion]:
    """Start a region; its replicas have the same ids as any other region's."""
    async with AsyncExitStack() as stack:
        directory = FakeDirectory(*replicas, region=name)
        region = FarRegion(name, directory, list(replicas))
        for number, replica in enumerate(replicas):
            replica.model, replica.replica_id = MODEL, f"{MODEL}/{number}"
            await replica.start()
            stack.push_async_callback(replica.kill)
            link = await stack.enter_async_context(TcpProxy(replica.address))
            replica.advertised = link.address
            region.links.append(link)
        await directory.start()
        stack.push_async_callback(directory.stop)
        region.links.append(await stack.enter_async_context(TcpProxy(directory.address)))
        yield region


@asynccontextmanager
async def regions_world(
    checkpoint: Path, home: list[FakeReplica], *regions: FarRegion, settings: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[World]:
    """A router at home (region `local`) that knows other regions.

    Args:
        settings: keys of each region's section, such as `injected_round_trip_seconds`.
        more: of `router_world`.
    """
    sections = [
        {"name": region.name, "controllers": [region.links[-1].address], **(settings or {})} for region in regions
    ]
    async with router_world(checkpoint, *home, regions=sections, **more) as world:
        await world.until_ready(len(home) + sum(len(region.replicas) for region in regions))
        yield world
