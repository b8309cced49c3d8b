"""llm-d's weighted scorers: prefix match, queue and KV utilisation, each from 0 to 1. Knows no distance and no lengths.

Source: llm-d's scheduler (Gateway API Inference Extension): endpoint score = sum of weight * score, highest wins;
prefix-cache-scorer = matched share of the prompt's blocks, queue-scorer = (longest - own) / (longest - shortest
queue), kv-cache-utilization-scorer = free share of KV blocks. Default weights queue 2, KV 2, prefix 3; published
guides use 1, 1, 2 and 1, 1, 3 as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting, least


class LlmD:
    """Adds up scores."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._setting = setting

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        queues = [replica.waiting for replica in replicas]
        shortest, longest = min(queues), max(queues)
        costs = []
        for replica in replicas:
            prefix = replica.cached_tokens / ask.num_prompt_tokens
            queue = (longest - replica.waiting) / (longest - shortest) if longest > shortest else 1.0
            room = 1 - replica.used_blocks / replica.total_blocks
            setting = self._setting
            costs.append(-(setting["prefix"] * prefix + setting["queue"] * queue + setting["kv"] * room))
        return least(replicas, costs, self._rng)


KIND = PolicyKind(
    "llm-d weights",
    LlmD,
    {"queue": 2, "kv": 2, "prefix": 3},
    (
        {"queue": 1, "kv": 1, "prefix": 2},
        {"queue": 1, "kv": 1, "prefix": 3},
        {"queue": 2, "kv": 8, "prefix": 3},
        {"queue": 4, "kv": 4, "prefix": 1},
    ),
)
