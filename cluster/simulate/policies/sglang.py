"""SGLang's cache-aware router: the longest match while the fleet is balanced, the shortest queue while it is not. Knows
no distance and no lengths.

Source: sgl-project/sglang, `cache_aware` policy of sgl-model-gateway (then sgl-router), read in its documentation:
imbalanced means max - min > balance_abs_threshold and max > balance_rel_threshold * min, in requests; balanced, a
match of more than cache_threshold of the prompt goes to the replica that has it, else to the one with most room.
Defaults 0.3, 64, 1.5 (0.5, 32 in older releases). Inferred: "most room" is the replica with fewest requests; the match
comes from the fleet's prefix index, which knows evictions, where the original keeps a tree of what it has sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting, least


class SglangCacheAware:
    """Switches between two rules."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._match = setting["match"]
        self._absolute = setting["absolute"]
        self._relative = setting["relative"]

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        loads = [replica.load for replica in replicas]
        low, high = min(loads), max(loads)
        imbalanced = high - low > self._absolute and high > self._relative * low
        best = max(replica.cached_tokens for replica in replicas)
        if not imbalanced and best > self._match * ask.num_prompt_tokens:
            return least(replicas, [-replica.cached_tokens for replica in replicas], self._rng)
        return least(replicas, loads, self._rng)


KIND = PolicyKind(
    "SGLang cache-aware",
    SglangCacheAware,
    {"match": 0.3, "absolute": 64, "relative": 1.5},
    (
        {"match": 0.5, "absolute": 32, "relative": 1.0001},
        {"match": 0.3, "absolute": 16, "relative": 1.5},
        {"match": 0.3, "absolute": 8, "relative": 1.5},
        {"match": 0.5, "absolute": 4, "relative": 1.2},
    ),
)
