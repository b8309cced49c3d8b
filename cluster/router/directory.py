"""Follows the directory of replicas of one region, connecting again whenever the watch ends. Keeps nothing itself.

While a controller is away the last directory stays in force: replicas are judged by their own heartbeats.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import grpc.aio

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster import rpc
from cluster.clock import Clock
from cluster.errors import ConfigurationError
from cluster.ids import RouterId
from cluster.peers import Identity, Role
from cluster.router.regions import Region

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.2

OnDirectory = Callable[[control_pb2.WatchReplicasResponse], None]


async def watch_region(
    region: Region,
    router_id: RouterId,
    identity: Identity,
    clock: Clock,
    on_directory: OnDirectory,
    metrics: str = "",
) -> None:
    """Call `on_directory` with every directory that a controller of the region sends; ends only by cancellation.

    Each connection is a new channel, so that renewed certificates are shown, and goes to the next controller in turn.

    Args:
        metrics: host:port at which this router can be scraped, for the controller's list.
    """
    request = control_pb2.WatchReplicasRequest(router_id=router_id, wants_prefixes=not region.is_home)
    request.metrics_address = metrics if region.is_home else ""
    was_connected = True
    for address in itertools.cycle(region.controllers):
        try:
            async with rpc.private_channel(address, identity, to=Role.CONTROLLER) as channel:
                stub = control_pb2_grpc.DirectoryServiceStub(channel)  # type: ignore[no-untyped-call]
                async for directory in stub.WatchReplicas(request):
                    _check_region(region, address, directory)
                    if not was_connected:
                        log.info("region %s: controller %s: connected", region.name, address)
                    was_connected = True
                    on_directory(directory)
        except (grpc.aio.AioRpcError, ConfigurationError) as error:
            # Once for each loss, not for each attempt: a controller may be away for minutes.
            if was_connected:
                why = error if isinstance(error, ConfigurationError) else rpc.to_service_error(error).reason.text
                log.warning("region %s: controller %s: %s", region.name, address, why)
            was_connected = False
        await clock.sleep(RECONNECT_SECONDS)


def _check_region(region: Region, address: str, directory: control_pb2.WatchReplicasResponse) -> None:
    """Prompts that must stay in a region must not follow a wrong address into another."""
    if directory.region != region.name:
        raise ConfigurationError(
            f"regions: {address} is a controller of {directory.region!r}, not of {region.name!r}; "
            "its replicas are not used"
        )
