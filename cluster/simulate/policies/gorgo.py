"""GORGO: round trip plus prefill of what is queued, running (discounted) and uncached. Knows no decode and no KV room.

Source: Ricci Toniolo, Dinesh, Thorstenson, "GORGO" (arXiv 2602.11688) and its public code: cost = latency + t_p *
(queued tokens + q * running tokens + prompt tokens - matched tokens), lowest wins; q = 0.5; t_p is the measured prefill
time of a token. Left out: the code's limit of 10 running requests a server, made for a 7B model on one small GPU, with
which a fleet of this size holds requests back for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting, least


class Gorgo:
    """Weighs tokens."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._running = setting["running"]

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        return least(replicas, [self._cost(ask, replica) for replica in replicas], self._rng)

    def _cost(self, ask: Ask, view: ReplicaView) -> float:
        tokens = view.pending_prefill_tokens + self._running * view.context_tokens
        tokens += ask.num_prompt_tokens - view.cached_tokens
        return view.round_trip + view.costs.prefill_per_token * tokens


KIND = PolicyKind("GORGO", Gorgo, {"running": 0.5}, ({"running": 0.2}, {"running": 0.05}, {"running": 0.0}))
