"""Argosy's own rule: the router's `choose_replica`, called as the router calls it, on the simulator's numbers.

Source: `cluster.router.choose`; nothing of the rule is here. `confined` keeps every request in its home region: what
regions without a common pool would do with the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.router.choose import Candidate, choose_replica
from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting


class MarginalCost:
    """Hands over to the router's function."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._facts = facts
        self._confined = bool(setting["confined"])

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        block_size = self._facts.block_size
        candidates = [
            Candidate(
                eligible=not self._confined or view.region == ask.region,
                rtt=view.round_trip,
                costs=view.costs,
                batch_tokens=self._facts.max_batch_tokens,
                running=view.running,
                context_tokens=view.context_tokens,
                pending_prefill_tokens=view.pending_prefill_tokens,
                prefill_share=view.prefill_share,
                free_tokens=(view.total_blocks - view.used_blocks) * block_size,
                used_tokens=view.used_blocks * block_size,
            )
            for view in replicas
        ]
        cached = [view.cached_tokens for view in replicas]
        chosen = choose_replica(ask.num_prompt_tokens, ask.expected_output_tokens, candidates, cached, self._facts.rng)
        # None: the whole home region is gone, and a confined request has nowhere to go but elsewhere.
        return replicas[0].index if chosen is None else replicas[chosen].index


KIND = PolicyKind("Argosy", MarginalCost, {"confined": 0})
KIND_CONFINED = PolicyKind("region-local", MarginalCost, {"confined": 1})
