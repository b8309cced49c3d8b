"""Consistent hashing with bounded loads: a session keeps its replica until that is `bound` times busier than the mean.
Knows no prefixes (sessions stand for them) and no distance.

Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018 (arXiv 1608.01350):
a replica is full at ceil(c * (m + 1) / n) requests; a key goes to the first replica on the ring that is not.
c = 1.25 is the authors' own deployment's; 64 points a replica on the ring are ours.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting

POINTS = 64


class BoundedHash:
    """Walks the ring from the session's point."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._bound = setting["bound"]
        self._ring = sorted(
            (_point(f"replica {replica} point {point}"), replica)
            for replica in range(facts.num_replicas)
            for point in range(POINTS)
        )
        self._points = [point for point, _ in self._ring]

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        load = {replica.index: replica.load for replica in replicas}
        full = math.ceil(self._bound * (sum(load.values()) + 1) / len(replicas))
        start = bisect(self._points, _point(f"session {ask.session}"))
        for step in range(len(self._ring)):
            replica = self._ring[(start + step) % len(self._ring)][1]
            if load.get(replica, full) < full:
                return replica
        raise AssertionError("somebody is below the mean")


def _point(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


KIND = PolicyKind("bounded hash", BoundedHash, {"bound": 1.25}, ({"bound": 1.1}, {"bound": 1.5}, {"bound": 2.0}))
