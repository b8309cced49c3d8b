"""Power of two choices: two replicas at random, the one with fewer requests takes it. Knows no prefixes, no distance.

Source: Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 2001. The load is requests
running and waiting, as in SGLang's and vLLM's routers. More candidates (`choices`) approach join-the-shortest-queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting, least


class PowerOfTwo:
    """Samples and compares."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._choices = int(setting["choices"])

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        sampled = self._rng.sample(replicas, min(self._choices, len(replicas)))
        return least(sampled, [replica.load for replica in sampled], self._rng)


KIND = PolicyKind("power of two", PowerOfTwo, {"choices": 2}, ({"choices": 4}, {"choices": 12}))
