"""Which regions a router follows: those of its configuration, at the addresses that discovery tells, and new ones.

Knows names and addresses; what following means is passed in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.errors import ConfigurationError
from cluster.ids import RegionId
from cluster.router.regions import Region

log = logging.getLogger(__name__)

Follow = Callable[[Region], Coroutine[Any, Any, None]]


class FollowedRegions:
    """One task for each region, replaced when its controllers move."""

    def __init__(self, configured: Sequence[Region], check: Callable[[str], None], follow: Follow) -> None:
        """
        Args:
            check: raises ConfigurationError if an address must not be called.
            follow: runs until it is cancelled.
        """
        self._configured = {region.name: region for region in configured}
        self._check = check
        self._follow = follow
        self._tasks: dict[Region, asyncio.Task[None]] = {}
        self.found({})

    @property
    def regions(self) -> frozenset[Region]:
        """As they are followed now."""
        return frozenset(self._tasks)

    def found(self, controllers: Mapping[str, tuple[str, ...]]) -> None:
        """Take over what was discovered: host:port of every controller by region; it replaces what was told before.

        A region whose controllers are not found is followed where the configuration says, if it does. What a region's
        last directory named stays in use for as long as it answers.
        """
        wanted = dict(self._configured)
        for name, addresses in controllers.items():
            known = wanted.get(RegionId(name), Region(RegionId(name), ()))
            if usable := self._usable(name, addresses):
                wanted[known.name] = replace(known, controllers=usable)
        for region, task in list(self._tasks.items()):
            if wanted.get(region.name) != region:
                task.cancel()
                del self._tasks[region]
        for region in wanted.values():
            if region not in self._tasks:
                log.info("region %s: controllers at %s", region.name, ", ".join(region.controllers))
                self._tasks[region] = asyncio.create_task(self._follow(region))

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _usable(self, name: str, addresses: Sequence[str]) -> tuple[str, ...]:
        usable = []
        for address in addresses:
            try:
                self._check(address)
            except ConfigurationError as error:
                log.warning("region %s: %s", name, error)
            else:
                usable.append(address)
        return tuple(usable)
