"""Which attention heads each tensor rank holds. Only numbers: no torch, no device.

While there are at most as many tensor ranks as KV heads, whole KV groups are dealt out. Beyond that, query heads are
cut into contiguous runs, a rank holds every KV head its run reads (so one KV head may live on several ranks), and a
group that is only partly on a rank is padded, so that attention on each rank stays uniform grouped-query attention
(Ainslie et al., 2023) and no kernel needs a map from query head to KV head. Runs are chosen so that padding and doubled
KV heads cost the slowest rank least; often none are needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.parallel.cuts import PartitionError, Span, balanced_cuts, split_dim


@dataclass(frozen=True, slots=True)
class HeadShard:
    """The attention heads of one rank. Local query head `i` (its *slot*) reads local KV head `i // group_size`."""

    query_heads: Span
    """Real query heads of this rank."""
    kv_heads: Span
    """KV heads that they read."""
    group_size: int
    """Query heads per KV head on this rank, the same for each after padding."""
    slots: tuple[int | None, ...]
    """Real query head in each of `kv_heads.size * group_size` places; None: zero padding."""


def split_heads(num_heads: int, num_kv_heads: int, weights: Sequence[float]) -> tuple[HeadShard, ...]:
    """Deal attention heads to `len(weights)` ranks; every query head goes to exactly one.

    Raises:
        PartitionError: heads do not form equal groups, or there are more ranks than query heads.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise PartitionError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}: no equal groups")
    ranks = len(weights)
    if ranks > num_heads:
        raise PartitionError(f"num_heads={num_heads} is fewer than tp={ranks}; use tp <= {num_heads}, and more stages")
    group = num_heads // num_kv_heads
    if ranks <= num_kv_heads:
        groups = split_dim("num_kv_heads", num_kv_heads, weights)
        return tuple(_head_shard(span.start * group, span.end * group, group) for span in groups)

    def attention_weights(rank: int, start: int, end: int) -> float:
        # A slot costs a row of Q and a column of O, a KV head a row of K and one of V.
        shard = _head_shard(start, end, group)
        return (len(shard.slots) + shard.kv_heads.size) / weights[rank]

    cuts = balanced_cuts(num_heads, ranks, attention_weights)
    assert cuts is not None, "every run has a finite cost"
    return tuple(_head_shard(start, end, group) for start, end in itertools.pairwise(cuts))


def _head_shard(start: int, end: int, group: int) -> HeadShard:
    """The shard of query heads `[start, end)` of a model with `group` query heads a KV head."""
    kv_heads = Span(start // group, math.ceil(end / group))
    runs = [range(max(start, kv * group), min(end, (kv + 1) * group)) for kv in range(kv_heads.start, kv_heads.end)]
    group_size = max(map(len, runs))
    padded = [[*run, *[None] * (group_size - len(run))] for run in runs]
    return HeadShard(Span(start, end), kv_heads, group_size, tuple(itertools.chain.from_iterable(padded)))
