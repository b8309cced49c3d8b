"""Round robin: each replica in turn, over the whole world. Knows nothing of load, prefixes or distance.

Source: folklore; the default of most gateways. Here one counter for all routers, so the turns are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting


class RoundRobin:
    """Takes turns."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._next = 0

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        self._next += 1
        return replicas[self._next % len(replicas)].index


KIND = PolicyKind("round robin", RoundRobin, {})
