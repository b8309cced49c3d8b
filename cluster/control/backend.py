"""What the controller asks of whoever runs processes: Ray in life, a scripted stand-in in tests. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from argosy.internal.v1 import control_pb2
from cluster.control.plan import ReplicaPlan
from cluster.control.topology import Node
from cluster.ids import Epoch, ReplicaId
from cluster.launch import ReplicaSpec

GRACE_SECONDS = 2.0


class BackendError(Exception):
    """A process could not be started, or is gone. One line for the operator."""


@dataclass(frozen=True, slots=True)
class RunningReplica:
    """An engine found alive when a controller starts."""

    replica_id: ReplicaId
    epoch: Epoch


class Backend(Protocol):
    """Starts, finds, asks and ends the processes of replicas. One replica and epoch names one set of processes."""

    async def inventory(self) -> list[Node]:
        """The living nodes and what is free on them."""
        ...

    async def running(self) -> list[RunningReplica]:
        """Engines that an earlier controller of this region started."""
        ...

    async def last_epoch(self, replica_id: ReplicaId) -> Epoch:
        """The highest epoch that was ever given to the replica; 0 if none."""
        ...

    async def start(self, plan: ReplicaPlan, spec: ReplicaSpec) -> None:
        """Start the engine and every rank; returns when each is told to, long before weights are loaded.

        Raises:
            UnplaceableError: the devices are not free after all.
            BackendError: a process did not come up.
        """
        ...

    async def status(self, replica_id: ReplicaId, epoch: Epoch) -> control_pb2.ReplicaStatus:
        """What the engine says of itself and of its ranks.

        Raises:
            BackendError: it is gone.
        """
        ...

    async def stop(
        self, replica_id: ReplicaId, epoch: Epoch, *, graceful: bool, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        """End every process of that epoch, whatever state they are in; no error if there is none.

        Args:
            graceful: let what runs finish first, for `grace_seconds` at most.
        """
        ...
