"""Preble's E2: exploit a match longer than what is left of the prompt, else explore by window load, eviction and own
prefill. Knows the step coefficients; knows no distance.

Source: Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM Serving", ICLR 2025 (arXiv
2407.00023) and WukLab/preble's global scheduler. If the matched prefix is longer than the rest, the replica with the
longest match takes the request, among equals the one with the lowest load; else the lowest L + M + P: L device-seconds
sent there in the last three minutes, M what evicted prefixes would cost to compute again, P the request's own prefill.
If the busiest replica's L exceeds `balance` times the idlest's, requests that would exploit the busiest go to the
idlest. Inferred: M as the code's heuristic has it (memory is always full, so as many tokens are evicted as are
computed) times the fleet's hit share. Left out: replication of one prefix whose own queue has doubled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting, least, prefill_seconds


class Preble:
    """Exploits, explores, rebalances."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._max_batch_tokens = facts.max_batch_tokens
        self._window = setting["window"]
        self._balance = setting["balance"]
        self._sent: deque[tuple[float, int, float]] = deque()
        self._load = [0.0] * facts.num_replicas
        self._prompt_tokens = 1.0
        self._hit_tokens = 0.0

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        self._forget(ask.now)
        loads = [self._load[view.index] for view in replicas]
        matched = max(view.cached_tokens for view in replicas)
        if matched > ask.num_prompt_tokens - matched:
            holders = [view for view in replicas if view.cached_tokens == matched]
            chosen = least(holders, [self._load[view.index] for view in holders], self._rng)
            if self._load[chosen] == max(loads) > self._balance * min(loads):
                chosen = least(replicas, loads, self._rng)
        else:
            chosen = least(replicas, [self._cost(ask, view) for view in replicas], self._rng)
        self._remember(ask, next(view for view in replicas if view.index == chosen))
        return chosen

    def _cost(self, ask: Ask, view: ReplicaView) -> float:
        own = prefill_seconds(view, ask, self._max_batch_tokens)
        return self._load[view.index] + own * (1 + self._hit_tokens / self._prompt_tokens)

    def _remember(self, ask: Ask, view: ReplicaView) -> None:
        costs = view.costs
        context = ask.num_prompt_tokens + ask.expected_output_tokens / 2
        decode = ask.expected_output_tokens * (costs.decode_per_sequence + costs.decode_per_context_token * context)
        seconds = prefill_seconds(view, ask, self._max_batch_tokens) + decode
        self._sent.append((ask.now, view.index, seconds))
        self._load[view.index] += seconds
        self._prompt_tokens += ask.num_prompt_tokens
        self._hit_tokens += view.cached_tokens

    def _forget(self, now: float) -> None:
        while self._sent and self._sent[0][0] < now - self._window:
            _, index, seconds = self._sent.popleft()
            self._load[index] -= seconds


KIND = PolicyKind(
    "Preble",
    Preble,
    {"window": 180, "balance": 1.5},
    ({"window": 60, "balance": 1.5}, {"window": 20, "balance": 1.5}, {"window": 20, "balance": 1.1}),
)
