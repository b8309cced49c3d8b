"""LMetric: tokens to prefill times batch size, lowest wins. Knows no distance and nothing to tune.

Source: Zhang et al., "LMetric: Simple is Better - Multiplication May Be All You Need for LLM Request Scheduling" (arXiv
2603.15202): score = P-token * BS, where P-token counts the uncached tokens of this prompt and the prefill queued there,
and BS the requests running and queued. Inferred: BS counts the request itself, so that an idle replica does not make
the product zero whatever its cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting, least


class LMetric:
    """Multiplies."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        costs = [
            (view.pending_prefill_tokens + ask.num_prompt_tokens - view.cached_tokens) * (view.load + 1.0)
            for view in replicas
        ]
        return least(replicas, costs, self._rng)


KIND = PolicyKind("LMetric", LMetric, {})
