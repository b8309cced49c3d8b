"""SkyWalker: prefix-aware, local first, pushes only to replicas where nothing waits; else the router keeps the request.
Knows distance only as "local" and "remote", and no lengths.

Source: Xia et al., "SkyWalker: A Locality-Aware Cross-Region Load Balancer for LLM Inference", EuroSys 2026 (arXiv
2505.24095), Algorithm 1: a replica with pending requests is not available; candidates are the local available
replicas, if none the remote regions that have an available replica and at most tau requests queued; among candidates
the longest prefix match. Inferred: the remote region's balancer then applies the same rule to its own replicas, which
is one step here (the longest match among available replicas of the regions that qualify), and a region's queue is the
requests held at its router plus those waiting at its replicas. `pending` widens "nothing waits" for tuning.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import HOLD, Ask, FleetFacts, PolicyKind, ReplicaView, Setting


class SkyWalker:
    """Selective pushing by pending requests."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._pending = setting["pending"]

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        available = [replica for replica in replicas if replica.waiting <= self._pending]
        candidates = [replica for replica in available if replica.region == ask.region] or available
        if not candidates:
            return HOLD
        # Equal matches: the least busy, then at random.
        return min(candidates, key=lambda view: (-view.cached_tokens, view.load, self._rng.random())).index


KIND = PolicyKind(
    "SkyWalker", SkyWalker, {"pending": 0}, ({"pending": 1}, {"pending": 2}, {"pending": 4}), may_hold=True
)
