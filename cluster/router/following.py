"""What controllers tell a router: replicas, models that were added, and that it is to end. Knows the watches' news, no
requests.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from argosy.internal.v1 import control_pb2
from cluster.clock import Clock
from cluster.config import ArgosyConfig, KubernetesDiscovery
from cluster.ids import ModelName, RegionId
from cluster.router.catalogue import Catalogue
from cluster.router.directory import watch_region
from cluster.router.fleet import Fleet, ModelTraffic
from cluster.router.found import FollowedRegions
from cluster.router.parts import Parts
from cluster.router.regions import Region

log = logging.getLogger(__name__)


def following(
    parts: Parts, regions: Sequence[Region], stop: asyncio.Event, *, metrics: str
) -> list[Coroutine[Any, Any, None]]:
    """Watch the controllers of all regions, and find those that the configuration does not name; for ever.

    Args:
        stop: set when the own controller sends this router away.
        metrics: where this router is scraped; empty if nowhere.

    Raises:
        ConfigurationError: discovery is asked for where it cannot be had.
    """
    config = parts.config
    learn = functools.partial(_learn_models, parts.catalogue, config, parts.traffic)
    on_directory = functools.partial(_on_directory, parts.fleet, config.region, stop, learn)
    check = functools.partial(parts.identity.check_exposure, key="discovery.kubernetes")
    follow = functools.partial(
        watch_region,
        router_id=parts.router_id,
        identity=parts.identity,
        clock=parts.clock,
        on_directory=on_directory,
        metrics=metrics,
    )
    followed = FollowedRegions(regions, check, follow)
    if config.discovery.kubernetes is None:
        return [followed.run()]
    found = _discover(config.discovery.kubernetes, parts.clock, followed)
    return [followed.run(), found]


def _discover(config: KubernetesDiscovery, clock: Clock, followed: FollowedRegions) -> Coroutine[Any, Any, None]:
    """Follows the controllers that the Kubernetes API knows. Whoever does not ask for it needs no client library.

    Raises:
        ConfigurationError: at once, if this process is in no pod or may not ask.
    """
    from cluster.discovery.account import Account
    from cluster.discovery.kubernetes import follow_controllers

    return follow_controllers(Account.of_this_pod(), config.namespaces, clock, followed.found)


def _learn_models(
    catalogue: Catalogue,
    config: ArgosyConfig,
    traffic: dict[ModelName, ModelTraffic],
    wanted: Iterable[control_pb2.WantedModel],
) -> None:
    """Serve models that were added to the region after this router started. One that cannot be read is left out."""
    for model in wanted:
        if model.name in catalogue or model.name in catalogue.refused:
            continue
        if (added := catalogue.add(model.name, model.section, config)) is not None:
            regions = frozenset(map(RegionId, added.regions))
            served = catalogue[model.name]
            # The fleet looks models up in this very mapping.
            traffic[ModelName(model.name)] = ModelTraffic(served.block_size, served.batch_tokens, regions)


def _on_directory(
    fleet: Fleet,
    region: str,
    stop: asyncio.Event,
    learn: Callable[[Iterable[control_pb2.WantedModel]], None],
    directory: control_pb2.WatchReplicasResponse,
) -> None:
    """Use what a controller offers. That of the own region may also add models, and end this router."""
    if directory.region == region:
        learn(directory.models)
    if directory.drain and directory.region == region and not stop.is_set():
        log.info("the controller sends this router away")
        stop.set()
    fleet.update(directory)
