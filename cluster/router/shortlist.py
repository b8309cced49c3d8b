"""Which replicas of a large fleet are worth comparing. Pure, and cheaper for each replica than the rule itself.

Whoever wins by the rule holds much of the prompt, or has little to do and is near, or is as good as any other. So the
warmest are kept, the soonest, and some at random; what this costs against comparing all is held small by a test.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

from cluster.router.choose import Candidate

MOST_COMPARED = 200
"""Up to so many replicas all are compared."""
NUM_WARM = 32
NUM_SOON = 64
NUM_RANDOM = 32


def shortlist(candidates: Sequence[Candidate], cached_tokens: Sequence[int], rng: random.Random) -> list[int]:
    """At most 128 indices of eligible candidates; all eligible ones if they are no more than `MOST_COMPARED`."""
    eligible = [index for index, candidate in enumerate(candidates) if candidate.eligible]
    if len(eligible) <= MOST_COMPARED:
        return eligible

    def soonest(index: int) -> float:
        candidate = candidates[index]
        costs = candidate.costs
        queued = candidate.rtt + candidate.pending_prefill_tokens * costs.prefill_per_token
        return queued + candidate.running * costs.decode_per_sequence

    warm = heapq.nlargest(NUM_WARM, (index for index in eligible if cached_tokens[index]), cached_tokens.__getitem__)
    soon = heapq.nsmallest(NUM_SOON, eligible, soonest)
    return list({*warm, *soon, *rng.sample(eligible, NUM_RANDOM)})
