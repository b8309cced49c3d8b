"""What operators told to leave: replicas, nodes, routers. Knows orders and whom they concern; stops nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster.clock import Clock
from cluster.control.reconcile import Drain, Phase, Record
from cluster.control.service import DrainTarget, RegionView
from cluster.control.topology import Node
from cluster.errors import Reason, ServiceError
from cluster.ids import ReplicaId

LOOK_SECONDS = 0.1
"""Between looks whether an order has been followed."""


@dataclass
class Drains:
    """Orders in force. A restarted controller has none."""

    replicas: dict[ReplicaId, Drain] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)

    def allows(self, node: Node) -> bool:
        """Whether something may be placed there."""
        return not {node.host, node.node_id} & self.nodes

    def followed(self, before: Mapping[ReplicaId, Record], now: Mapping[ReplicaId, Record]) -> None:
        """Forget the orders to build a replica again that has ended: it may start."""
        for replica_id, drain in list(self.replicas.items()):
            old, new = before.get(replica_id), now.get(replica_id)
            has_ended = new is None or new.phase not in (Phase.STARTING, Phase.READY, Phase.DRAINING)
            if drain.restart and old is not None and has_ended:
                del self.replicas[replica_id]


class Orders:
    """Takes orders, and waits until they have been followed."""

    def __init__(
        self, drains: Drains, view: RegionView, clock: Clock, records: Callable[[], Mapping[ReplicaId, Record]]
    ) -> None:
        self._drains = drains
        self._view = view
        self._clock = clock
        self._records = records

    async def drain(self, target: DrainTarget, drain: Drain, *, undo: bool) -> None:
        """Return once the target has left, or at once if the order is taken back.

        Raises:
            ServiceError: UNKNOWN_RESOURCE, there is no such target; the message names those that there are.
        """
        if target.kind == "replica_id":
            await self._drain_replica(ReplicaId(target.name), drain, undo=undo)
        elif target.kind == "node":
            await self._drain_node(target.name, drain, undo=undo)
        else:
            await self._drain_router(target.name)

    def leave(self, node: str, grace_seconds: float) -> None:
        """Place nothing more on a node, and build its replicas again elsewhere. Waits for nothing."""
        self._drains.nodes.add(node)
        for status in self._view.status.replicas:
            if any(rank.node == node for rank in status.ranks):
                self._drains.replicas[ReplicaId(status.replica_id)] = Drain(grace_seconds, restart=True)

    def use_again(self, node: str) -> None:
        """Take `leave` back."""
        self._drains.nodes.discard(node)

    async def _drain_replica(self, replica_id: ReplicaId, drain: Drain, *, undo: bool) -> None:
        before = self._records().get(replica_id)
        if before is None:
            raise _unknown("replica", replica_id, self._records())
        if undo:
            self._drains.replicas.pop(replica_id, None)
            return
        self._drains.replicas[replica_id] = drain
        if drain.restart:
            await self._until(lambda: self._is_ready_after(before))
        else:
            await self._until(lambda: self._records()[replica_id].phase is Phase.RESTING)

    async def _drain_node(self, name: str, drain: Drain, *, undo: bool) -> None:
        if undo:
            if name not in self._drains.nodes:
                raise _unknown("drained node", name, self._drains.nodes)
            self._drains.nodes.discard(name)
            return
        on_node = {
            ReplicaId(status.replica_id): self._records()[ReplicaId(status.replica_id)]
            for status in self._view.status.replicas
            if any(rank.node == name for rank in status.ranks)
        }
        if not on_node:
            hosts = {rank.node for status in self._view.status.replicas for rank in status.ranks}
            raise _unknown("node with replicas", name, hosts)
        self._drains.nodes.add(name)
        for replica_id in on_node:
            self._drains.replicas[replica_id] = Drain(drain.grace_seconds, restart=True)
        # They may never find another place: the node is free when they have left it.
        await self._until(lambda: all(self._has_left(before) for before in on_node.values()))

    async def _drain_router(self, router_id: str) -> None:
        if router_id not in self._view.router_ids:
            raise _unknown("router", router_id, self._view.router_ids)
        self._view.send_away(router_id)
        await self._until(lambda: router_id not in self._view.router_ids)

    def _has_left(self, before: Record) -> bool:
        now = self._records().get(before.replica_id)
        return (
            now is None
            or now.epoch > before.epoch
            or now.phase
            not in (
                Phase.STARTING,
                Phase.READY,
                Phase.DRAINING,
            )
        )

    def _is_ready_after(self, before: Record) -> bool:
        now = self._records().get(before.replica_id)
        return now is None or (now.epoch > before.epoch and now.phase is Phase.READY)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._clock.sleep(LOOK_SECONDS)


def _unknown(kind: str, name: str, known: object) -> ServiceError:
    names = ", ".join(sorted(map(str, known))) or "none"  # type: ignore[call-overload]
    return ServiceError(Reason.UNKNOWN_RESOURCE, f"no {kind} {name!r}; there are: {names}")
