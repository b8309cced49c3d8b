"""Ray as the controller uses it: nodes, placement groups, detached named actors. Control imports ray nowhere else.

Ray places and supervises processes; it never sees a token. A replica is one placement group with one bundle for the
ranks of a stage on a node, pinned to the node that `placement` chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.experimental import internal_kv
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from argosy.internal.v1 import control_pb2
from cluster.config import RayConfig
from cluster.control.backend import GRACE_SECONDS, BackendError, RunningReplica
from cluster.control.placement import UnplaceableError
from cluster.control.plan import ReplicaPlan
from cluster.control.topology import Node, nodes_from_ray
from cluster.ids import Epoch, ReplicaId
from cluster.launch import ENGINE_ACTOR, WORKER_ACTOR, EngineAddresses, EngineSpec, ReplicaSpec, WorkerSpec
from cluster.worker.launcher import RoleActor

logger = logging.getLogger(__name__)

RESERVE_SECONDS = 15.0
"""How long Ray may take to reserve devices that it said are free."""
PROCESS_SECONDS = 120.0
"""How long an actor's process may take to exist."""
STATUS_SECONDS = 2.0
END_SECONDS = 2.0
"""How long ranks and connections of an engine that has finished may take to end."""

NODE_LABEL = "ray.io/node-id"


@dataclass(slots=True)
class _Processes:
    """One epoch of one replica, as far as it exists."""

    group: PlacementGroup | None = None
    engine: Any = None
    workers: list[Any] = field(default_factory=list)


class RayBackend:
    """`cluster.control.backend.Backend` over the Ray cluster that this process is part of."""

    def __init__(self, config: RayConfig, labels: Callable[[str], Mapping[str, str]] = lambda host: {}) -> None:
        """`labels`: what else is known of the node at an address; Ray's own labels are believed over it."""
        self._labels = labels
        self._namespace = config.namespace
        self._local = config.address == "local"
        self._processes: dict[tuple[ReplicaId, Epoch], _Processes] = {}

    async def inventory(self) -> list[Node]:
        nodes, free = await asyncio.gather(
            asyncio.to_thread(ray.nodes), asyncio.to_thread(ray.state.available_resources_per_node)
        )
        found = nodes_from_ray(nodes, free, local=self._local)
        return [replace(node, labels={**self._labels(node.host), **node.labels}) for node in found]

    async def running(self) -> list[RunningReplica]:
        names = await asyncio.to_thread(ray.util.list_named_actors)
        return [found for name in names if (found := _parse_engine_name(name))]

    async def last_epoch(self, replica_id: ReplicaId) -> Epoch:
        value = await asyncio.to_thread(internal_kv._internal_kv_get, self._epoch_key(replica_id))
        return Epoch(int(value)) if value else Epoch(0)

    async def remember(self, configuration: str) -> None:
        """Keep what was applied for the next controller of this region."""
        await asyncio.to_thread(
            internal_kv._internal_kv_put, applied_key(self._namespace), configuration, overwrite=True
        )

    async def recall(self) -> str | None:
        """What was applied since the region was started from its file."""
        value: bytes | None = await asyncio.to_thread(internal_kv._internal_kv_get, applied_key(self._namespace))
        return value.decode() if value else None

    async def start(self, plan: ReplicaPlan, spec: ReplicaSpec) -> None:
        processes = self._processes[spec.replica_id, spec.epoch] = _Processes()
        await asyncio.to_thread(
            internal_kv._internal_kv_put, self._epoch_key(spec.replica_id), str(spec.epoch), overwrite=True
        )
        try:
            processes.group = ask_for_group(plan, spec)
            await _reserved(processes.group)
            # Every process is on its way before any is waited for: together they take as long as the slowest.
            processes.engine = self._actor(ENGINE_ACTOR, spec, "engine", processes.group)
            bundles = _bundles(plan)
            for rank in plan.ranks:
                at = rank.shard.coordinates
                role = f"worker/{at.stage}/{at.tp_rank}"
                gpus = 1 if plan.device == "cuda" else 0
                bundle = bundles.index((at.stage, rank.node.node_id))
                worker = self._actor(WORKER_ACTOR, spec, role, processes.group, bundle=bundle, gpus=gpus)
                processes.workers.append(worker)
            addresses: EngineAddresses = await _answer(
                processes.engine.start.remote(EngineSpec(spec, plan.placement.engine_node.host)), PROCESS_SECONDS
            )
            calls = [
                worker.start.remote(WorkerSpec(spec, rank.shard.coordinates, addresses.step_channel, rank.node.host))
                for worker, rank in zip(processes.workers, plan.ranks, strict=True)
            ]
            await asyncio.gather(*(_answer(call, PROCESS_SECONDS) for call in calls))
        except RayError as error:
            raise BackendError(_one_line(error)) from error

    async def status(self, replica_id: ReplicaId, epoch: Epoch) -> control_pb2.ReplicaStatus:
        try:
            processes = await self._find(replica_id, epoch)
            raw: bytes = await _answer(processes.engine.status.remote(), STATUS_SECONDS)
        except GetTimeoutError:
            # Silence is for the reconciler to judge: it knows for how long.
            return control_pb2.ReplicaStatus(replica_id=replica_id)
        except (RayError, ValueError) as error:
            raise BackendError(f"the engine is gone: {_one_line(error)}") from error
        return control_pb2.ReplicaStatus.FromString(raw)

    async def stop(
        self, replica_id: ReplicaId, epoch: Epoch, *, graceful: bool, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        processes = self._processes.pop((replica_id, epoch), None)
        if processes is None:
            processes = await asyncio.to_thread(self._look_up, replica_id, epoch)
        if graceful and processes.engine is not None:
            with contextlib.suppress(RayError, TimeoutError):
                await _answer(processes.engine.stop.remote(grace_seconds), grace_seconds + END_SECONDS)
        await asyncio.to_thread(_kill, processes)

    def _actor(
        self, entry_point: str, spec: ReplicaSpec, role: str, group: PlacementGroup, *, bundle: int = 0, gpus: int = 0
    ) -> Any:
        return RoleActor.options(
            name=f"{spec.replica_id}/{role}/{spec.epoch}",
            namespace=self._namespace,
            lifetime="detached",
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
        ).remote(entry_point)

    async def _find(self, replica_id: ReplicaId, epoch: Epoch) -> _Processes:
        key = (replica_id, epoch)
        if key not in self._processes:
            found = await asyncio.to_thread(self._look_up, replica_id, epoch)
            if found.engine is None:
                raise ValueError("no such actor")
            self._processes[key] = found
        return self._processes[key]

    def _look_up(self, replica_id: ReplicaId, epoch: Epoch) -> _Processes:
        """Whatever still runs under that epoch's names: another controller may have started it."""
        found = _Processes()
        for name in ray.util.list_named_actors():
            if not (name.startswith(f"{replica_id}/") and name.endswith(f"/{epoch}")):
                continue
            with contextlib.suppress(ValueError):
                handle = ray.get_actor(name, namespace=self._namespace)
                if name.removeprefix(f"{replica_id}/").startswith("engine/"):
                    found.engine = handle
                else:
                    found.workers.append(handle)
        with contextlib.suppress(ValueError):
            found.group = get_placement_group(f"{replica_id}/{epoch}")
        return found

    def _epoch_key(self, replica_id: ReplicaId) -> str:
        return f"argosy/{self._namespace}/{replica_id}/epoch"


def applied_key(namespace: str) -> str:
    """Under which Ray's own store keeps the configuration that was applied last."""
    return f"argosy/{namespace}/applied"


def _bundles(plan: ReplicaPlan) -> list[tuple[int, str]]:
    """(stage, node id) of each bundle; the engine's is the first."""
    return list(dict.fromkeys((rank.shard.coordinates.stage, rank.node.node_id) for rank in plan.ranks))


def ask_for_group(plan: ReplicaPlan, spec: ReplicaSpec) -> PlacementGroup:
    """Ask Ray to reserve a replica's devices where the plan has them; the group becomes ready by and by."""
    ranks = Counter((rank.shard.coordinates.stage, rank.node.node_id) for rank in plan.ranks)
    places = _bundles(plan)
    bundles = [{"CPU": float(ranks[place]) + (1.0 if index == 0 else 0.0)} for index, place in enumerate(places)]
    if plan.device == "cuda":
        bundles = [{**bundle, "GPU": float(ranks[place])} for bundle, place in zip(bundles, places, strict=True)]
    group: PlacementGroup = placement_group(
        bundles,
        strategy="PACK",
        name=f"{spec.replica_id}/{spec.epoch}",
        lifetime="detached",
        bundle_label_selector=[{NODE_LABEL: node_id} for _, node_id in places],
    )
    return group


async def _reserved(group: PlacementGroup) -> None:
    if not await asyncio.to_thread(group.wait, RESERVE_SECONDS):
        raise UnplaceableError(
            f"Ray did not reserve {group.bundle_specs} within {RESERVE_SECONDS:.0f} s; `ray status` shows why"
        )


def _parse_engine_name(name: str) -> RunningReplica | None:
    """`{replica id}/engine/{epoch}`; None for any other name."""
    replica_id, _, epoch = name.rpartition("/engine/")
    return RunningReplica(ReplicaId(replica_id), Epoch(int(epoch))) if replica_id and epoch.isdigit() else None


async def _answer(reference: Any, seconds: float) -> Any:
    """The result of an actor call.

    Raises:
        GetTimeoutError: none came in time.
    """
    try:
        async with asyncio.timeout(seconds):
            return await reference
    except TimeoutError:
        raise GetTimeoutError(f"no answer within {seconds:.0f} s") from None


def _kill(processes: _Processes) -> None:
    """End every process now. Nothing is asked of them: a stopped or hung rank would not answer."""
    for actor in [processes.engine, *processes.workers]:
        if actor is not None:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(actor, no_restart=True)
    if processes.group is not None:
        with contextlib.suppress(RayError, ValueError):
            remove_placement_group(processes.group)


def _one_line(error: Exception) -> str:
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return text if cause is error else f"{type(cause).__name__}: {text}"
