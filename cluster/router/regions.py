"""The regions that a router may use, and what of them a request may use. Knows configuration; no replicas, no sockets.

A router is told every region in its configuration: where its controllers are, and how far it is expected to be. Which
regions may serve a model (data residency) or a tenant is decided here, before any replica is compared with another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cluster.config import ArgosyConfig
from cluster.ids import ModelName, RegionId


@dataclass(frozen=True, slots=True)
class Region:
    """One region as a router's configuration names it."""

    name: RegionId
    controllers: tuple[str, ...]
    """host:port each; the first that answers is listened to."""
    is_home: bool = False
    """The router's own."""
    expected_round_trip: float | None = None
    """Seconds; what is measured takes its place by and by."""
    injected_round_trip: float = 0.0
    """Seconds added on purpose, where several regions share a machine."""


def regions_of(config: ArgosyConfig) -> tuple[Region, ...]:
    """The home region first. Its controller is `controller.listen` unless `regions` names it."""
    home = RegionId(config.region)
    named = {
        RegionId(section.name): Region(
            RegionId(section.name),
            section.controllers,
            section.name == home,
            section.round_trip_seconds,
            section.injected_round_trip_seconds,
        )
        for section in config.regions
    }
    own = named.pop(home, Region(home, (config.controller.listen,), is_home=True))
    return (own, *named.values())


def eligible_regions(config: ArgosyConfig) -> Mapping[ModelName, frozenset[RegionId]]:
    """For each model, the regions whose replicas may serve it; empty: all."""
    return {ModelName(model.name): frozenset(map(RegionId, model.regions)) for model in config.models}


def may_serve(region: RegionId, *allowed: Collection[str]) -> bool:
    """Whether a region is in every collection that names any."""
    return all(not names or region in names for names in allowed)
