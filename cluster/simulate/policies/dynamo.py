"""Dynamo's KV router: blocks to prefill, weighted, plus blocks to decode. Knows no distance.

Source: NVIDIA Dynamo, "Routing concepts" and the default worker selector: logit = overlap_score_weight *
prefill_blocks + decode_blocks, lowest wins (temperature 0); prefill_blocks = (prompt tokens queued there + this
prompt's uncached tokens) / block size, decode_blocks = blocks active there + those this prompt adds. Default weight 1;
the documentation advises more for time to first token.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.simulate.policies.base import Ask, FleetFacts, PolicyKind, ReplicaView, Setting, least


class Dynamo:
    """Counts blocks."""

    def __init__(self, facts: FleetFacts, setting: Setting) -> None:
        self._rng = facts.rng
        self._block_size = facts.block_size
        self._overlap_weight = setting["overlap_weight"]

    def choose(self, ask: Ask, replicas: Sequence[ReplicaView]) -> int:
        return least(replicas, [self._cost(ask, replica) for replica in replicas], self._rng)

    def _cost(self, ask: Ask, view: ReplicaView) -> float:
        uncached = ask.num_prompt_tokens - view.cached_tokens
        prefill_blocks = (view.pending_prefill_tokens + uncached) / self._block_size
        decode_blocks = view.used_blocks + uncached / self._block_size
        return self._overlap_weight * prefill_blocks + decode_blocks


KIND = PolicyKind(
    "Dynamo",
    Dynamo,
    {"overlap_weight": 1},
    ({"overlap_weight": 2}, {"overlap_weight": 4}, {"overlap_weight": 8}, {"overlap_weight": 16}),
)
