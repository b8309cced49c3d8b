"""The sets of objects that routers and controllers follow, joined and turned into what they act on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from kubernetes.aio import client

from cluster.clock import Clock
from cluster.discovery.account import Account
from cluster.discovery.objects import REGION_LABEL, Machine, Object, controllers, machines
from cluster.discovery.watch import Watched, follow


async def follow_controllers(
    account: Account,
    namespaces: Iterable[str],
    clock: Clock,
    on_controllers: Callable[[dict[str, tuple[str, ...]]], None],
) -> None:
    """Tell where the controllers of each region are, whenever that changes; ends only by cancellation.

    Args:
        namespaces: to look in; none: the pod's own.
    """
    seen: dict[str, Mapping[str, Object]] = {}
    last: dict[str, tuple[str, ...]] | None = None

    def take(namespace: str, objects: Mapping[str, Object]) -> None:
        nonlocal last
        seen[namespace] = objects
        found = controllers(piece for of_one in seen.values() for piece in of_one.values())
        if found != last:
            last = found
            on_controllers(found)

    async with account.open() as api, asyncio.TaskGroup() as group:
        slices = client.DiscoveryV1Api(api)
        for name in tuple(namespaces) or (account.namespace,):
            watched = Watched(
                f"endpointslices in {name}",
                slices.list_namespaced_endpoint_slice_without_preload_content,
                {"namespace": name, "label_selector": REGION_LABEL},
            )
            group.create_task(follow(watched, clock, lambda objects, name=name: take(name, objects)))  # type: ignore[misc]


async def follow_machines(account: Account, clock: Clock, on_machines: Callable[[dict[str, Machine]], None]) -> None:
    """Tell what is under each pod of this namespace, whenever that changes; ends only by cancellation."""
    pods: Mapping[str, Object] = {}
    nodes: Mapping[str, Object] = {}
    last: dict[str, Machine] | None = None

    def publish() -> None:
        nonlocal last
        found = machines(pods.values(), nodes.values())
        if found != last:
            last = found
            on_machines(found)

    def take_pods(objects: Mapping[str, Object]) -> None:
        nonlocal pods
        pods = objects
        publish()

    def take_nodes(objects: Mapping[str, Object]) -> None:
        nonlocal nodes
        nodes = objects
        publish()

    async with account.open() as api, asyncio.TaskGroup() as group:
        core = client.CoreV1Api(api)
        own = account.namespace
        of_pods = Watched(f"pods in {own}", core.list_namespaced_pod_without_preload_content, {"namespace": own})
        group.create_task(follow(of_pods, clock, take_pods))
        group.create_task(follow(Watched("nodes", core.list_node_without_preload_content, {}), clock, take_nodes))
