"""Asks the controllers of all regions again and again. Knows addresses and the control service; shows nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import grpc.aio

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.clock import Clock
from cluster.config import ArgosyConfig
from cluster.overview.figures import Reading, RegionView, region_view
from cluster.peers import Identity, Role
from cluster.rpc import private_channel

ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """A region and where its controllers may be."""

    region: str
    controllers: Sequence[str]


def places_of(config: ArgosyConfig) -> list[Place]:
    """The own region, then the others of the configuration."""
    own = Place(config.region, (config.controller.listen,))
    return [
        own,
        *(Place(section.name, section.controllers) for section in config.regions if section.name != own.region),
    ]


async def overviews(
    places: Sequence[Place], identity: Identity, clock: Clock, seconds: float
) -> AsyncIterator[list[RegionView]]:
    """A view of every region, every so many seconds, for ever."""
    before: dict[str, Reading] = {}
    while True:
        began = clock.monotonic()
        yield list(await asyncio.gather(*(_look(place, identity, clock, before) for place in places)))
        await clock.sleep(max(0.0, seconds - (clock.monotonic() - began)))


async def _look(place: Place, identity: Identity, clock: Clock, before: dict[str, Reading]) -> RegionView:
    problem = ""
    for controller in place.controllers:
        try:
            status = await _ask(controller, identity)
        except grpc.aio.AioRpcError as error:
            problem = f"no controller answers at {controller} ({error.code().name})"
            continue
        now = Reading(clock.monotonic(), status)
        view = region_view(controller, before.get(place.region), now)
        before[place.region] = now
        return view
    before.pop(place.region, None)
    return RegionView(place.region, ", ".join(place.controllers), problem)


async def _ask(controller: str, identity: Identity) -> control_pb2.GetStatusResponse:
    async with private_channel(controller, identity, to=Role.CONTROLLER) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)  # type: ignore[no-untyped-call]
        status: control_pb2.GetStatusResponse = await stub.GetStatus(
            control_pb2.GetStatusRequest(), timeout=ANSWER_SECONDS
        )
        return status
