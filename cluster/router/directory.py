"""Follows one controller's directory of replicas, connecting again whenever the watch ends. Keeps nothing itself.

While the controller is away the last directory stays in force: replicas are judged by their own heartbeats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc.aio

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster import rpc
from cluster.clock import Clock
from cluster.ids import RouterId

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.2


async def watch_directory(
    address: str,
    router_id: RouterId,
    clock: Clock,
    on_directory: Callable[[control_pb2.WatchReplicasResponse], None],
) -> None:
    """Call `on_directory` with every directory that the controller at `address` sends; ends only by cancellation."""
    async with rpc.channel(address) as channel:
        stub = control_pb2_grpc.DirectoryServiceStub(channel)  # type: ignore[no-untyped-call]
        was_connected = True
        while True:
            try:
                async for directory in stub.WatchReplicas(control_pb2.WatchReplicasRequest(router_id=router_id)):
                    if not was_connected:
                        log.info("controller %s: connected", address)
                    was_connected = True
                    on_directory(directory)
            except grpc.aio.AioRpcError as error:
                # Once for each loss, not for each attempt: a controller may be away for minutes.
                if was_connected:
                    log.warning("controller %s: %s", address, rpc.to_service_error(error).reason.text)
                was_connected = False
            await clock.sleep(RECONNECT_SECONDS)
