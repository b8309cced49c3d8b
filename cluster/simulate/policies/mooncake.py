"""Mooncake's Conductor: the replica of the shortest predicted time to first token, refusal if even that is too long.
Knows the step coefficients; knows distance in its second form only.

Source: Qin et al., "Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving", FAST 2025, Algorithm 1:
TTFT = T_queue + T_prefill(prompt, matched prefix), the smallest wins, and a request whose TTFT exceeds its target is
refused (HTTP 429). Left out: moving KV between replicas (kvcache_balancing_threshold), which no fleet here can do, and
the choice of a decode instance, as replicas here do both. Inferred: `with_round_trip` adds the round trip to TTFT, for
several regions; `refuse` can be switched off, as a refused request counts as failed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import (
    REJECT,
    Ask,
    FleetFacts,
    PolicyKind,
    ReplicaView,
    Setting,
    least,
    prefill_seconds,
    queue_seconds,
)


class Mooncake:
    """Predicts."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._max_batch_tokens = facts.max_batch_tokens
        self._refuse = bool(setting["refuse"])
        self._round_trip_weight = setting["with_round_trip"]

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        times = [self._ttft(ask, replica) for replica in replicas]
        if self._refuse and min(times) > ask.ttft_target:
            return REJECT
        return least(replicas, times, self._rng)

    def _ttft(self, ask: Ask, view: ReplicaView) -> float:
        batch = self._max_batch_tokens
        compute = queue_seconds(view, batch) + prefill_seconds(view, ask, batch)
        return compute + self._round_trip_weight * view.round_trip


KIND = PolicyKind("Mooncake", Mooncake, {"refuse": 1, "with_round_trip": 0}, ({"refuse": 0, "with_round_trip": 0},))
KIND_WITH_ROUND_TRIP = PolicyKind(
    "Mooncake + RTT", Mooncake, {"refuse": 1, "with_round_trip": 1}, ({"refuse": 0, "with_round_trip": 1},)
)
