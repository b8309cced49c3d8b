"""Which layers, heads, MLP columns, experts and vocabulary rows each rank holds. Only numbers: no torch, no device.

Sizes need not divide. While there are at most as many tensor ranks as KV heads, whole KV groups are dealt out. Beyond
that, query heads are cut into contiguous runs, a rank holds every KV head its run reads (so one KV head may live on
several ranks), and a group that is only partly on a rank is padded, so that attention on each rank stays uniform
grouped-query attention (Ainslie et al., 2023) and no kernel needs a map from query head to KV head. Runs are chosen so
that padding and doubled KV heads cost the slowest rank least; often none are needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.parallel.dims import ParallelDims, RankCoordinates


class PartitionError(ValueError):
    """The model cannot be cut that way; the message names the dimension, the sizes and a fix."""


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range `[start, end)`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


NOTHING = Span(0, 0)


@dataclass(frozen=True, slots=True)
class ExpertShard:
    """What one rank holds of each layer's experts; nothing where the model has none."""

    experts: Span = NOTHING
    """Experts of this rank's group on the expert axis."""
    experts_of_rank: tuple[Span, ...] = ()
    """The same of every tensor rank of the stage."""
    intermediate: Span = NOTHING
    """Columns of each of them."""
    shared_intermediate: Span = NOTHING
    """Columns of the shared expert, which is cut over all tensor ranks."""


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


@dataclass(frozen=True, slots=True)
class RankShard:
    """What one rank of a replica holds. The embedding is only on the first stage, the head only on the last."""

    coordinates: RankCoordinates
    dims: ParallelDims
    layers: Span
    heads: HeadShard
    intermediate: Span
    """Columns of the MLP's inner dimension."""
    vocab: Span
    """Rows of the embedding and of the head."""
    experts: ExpertShard = ExpertShard()

    @property
    def is_first_stage(self) -> bool:
        return self.coordinates.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.coordinates.stage == self.dims.pp - 1


@dataclass(frozen=True, slots=True)
class StageCosts:
    """Time of each part of one pass, in any one unit: what the pipeline is balanced by."""

    layer: float | Sequence[float]
    """One number a layer, or the same for all."""
    embedding: float
    head: float

    def layers(self, start: int, end: int) -> float:
        """Time of layers [start, end)."""
        return sum(self.layer[start:end]) if isinstance(self.layer, Sequence) else self.layer * (end - start)


def modelled_costs(config: ModelConfig) -> StageCosts:
    """Multiply-adds per decoded token, which are also the weights read per step: in decode both set the pace.

    The embedding counts as the one row it copies. Pass measured `StageCosts` to `partition` where there are some.
    """
    layers = [float(active_layer_elements(config, layer)) for layer in range(config.num_layers)]
    return StageCosts(
        layer=layers if len(set(layers)) > 1 else layers[0],
        embedding=float(config.hidden_size),
        head=float(config.vocab_size * config.hidden_size),
    )


def partition(
    config: ModelConfig,
    dims: ParallelDims,
    *,
    weights: Sequence[float] | None = None,
    quantum: int = 1,
    costs: StageCosts | None = None,
) -> tuple[RankShard, ...]:
    """Cut a model for `dims.world_size` ranks; entry `i` belongs to world rank `i`.

    Args:
        weights: relative speed of each world rank's device; default: all alike.
        quantum: MLP columns and vocabulary rows are cut only at multiples of it (32 for block-quantised weights).
        costs: time of a layer, the embedding and the head; default: `modelled_costs`.

    Raises:
        PartitionError: more ranks than there is something to deal out.
    """
    if dims.tp < 1 or dims.pp < 1:
        raise PartitionError(f"tp={dims.tp}, pp={dims.pp}: both must be at least 1")
    _check_expert_axis(config, dims)
    if quantum < 1:
        raise PartitionError(f"quantum={quantum}: must be at least 1")
    speeds = _checked_weights(weights, dims)
    stage_layers = _split_layers(config, [sum(stage) for stage in speeds], costs or modelled_costs(config))
    shards: list[RankShard] = []
    for stage, (layers, stage_speeds) in enumerate(zip(stage_layers, speeds, strict=True)):
        heads = split_heads(config.num_heads, config.num_kv_heads, stage_speeds)
        intermediate = split_dim("intermediate_size", config.intermediate_size, stage_speeds, quantum)
        vocab = split_dim("vocab_size", config.vocab_size, stage_speeds, quantum)
        experts = split_experts(config, dims, stage_speeds, quantum)
        shards.extend(
            RankShard(
                RankCoordinates(stage, rank), dims, layers, heads[rank], intermediate[rank], vocab[rank], experts[rank]
            )
            for rank in range(dims.tp)
        )
    return tuple(shards)


def split_experts(
    config: ModelConfig, dims: ParallelDims, weights: Sequence[float], quantum: int = 1
) -> tuple[ExpertShard, ...]:
    """Deal experts to the groups of the expert axis, then each group's columns to its ranks.

    Raises:
        PartitionError: fewer experts than groups, or fewer columns than ranks.
    """
    if config.experts is None:
        return (ExpertShard(),) * dims.tp
    size, shared_size = dims.expert_group_size, config.experts.shared_intermediate_size
    groups = [weights[start : start + size] for start in range(0, dims.tp, size)]
    experts = split_dim("num_experts", config.experts.num_experts, [sum(group) for group in groups])
    # Scales of groups along an expert's inputs must not be cut.
    unit = math.lcm(quantum, 32 if config.quantisation and config.quantisation.method == "mxfp4" else 1)
    inner = config.experts.intermediate_size
    columns = [span for group in groups for span in split_dim("expert intermediate_size", inner, group, unit)]
    shared = (
        split_dim("shared intermediate_size", shared_size, weights, quantum) if shared_size else (NOTHING,) * dims.tp
    )
    of_rank = tuple(experts[rank // size] for rank in range(dims.tp))
    return tuple(ExpertShard(of_rank[rank], of_rank, columns[rank], shared[rank]) for rank in range(dims.tp))


def split_dim(name: str, size: int, weights: Sequence[float], quantum: int = 1) -> tuple[Span, ...]:
    """Cut `[0, size)` at multiples of `quantum` in proportion to `weights`, something for everyone.

    Raises:
        PartitionError: fewer than one quantum a rank.
    """
    units = math.ceil(size / quantum)
    if units < len(weights):
        raise PartitionError(
            f"{name}={size} in units of {quantum} gives {units} parts for {len(weights)} ranks; use tp <= {units}"
        )
    ends = [min(size, end * quantum) for end in itertools.accumulate(_deal(units, weights))]
    return tuple(Span(start, end) for start, end in itertools.pairwise([0, *ends]))


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

    cuts = _balanced_cuts(num_heads, ranks, attention_weights)
    return tuple(_head_shard(start, end, group) for start, end in itertools.pairwise(cuts))


def kv_block_bytes(config: ModelConfig, shard: RankShard, block_size: int, bytes_per_element: float) -> int:
    """Bytes that one block of `block_size` tokens' keys and values takes on this rank, over all its layers.

    Every rank keeps a whole latent (twice on CPU: in the order of keys and in that of values).
    """
    if config.latent is not None:
        per_token = 2 * config.latent.cached_size
    else:
        per_token = 2 * shard.heads.kv_heads.size * config.head_dim
    return math.ceil(per_token * shard.layers.size * block_size * bytes_per_element)


def active_layer_elements(config: ModelConfig, layer: int) -> int:
    """Weights of one layer that one token uses: of the experts, those that it is sent to. Norms and biases left out."""
    hidden, latent, experts = config.hidden_size, config.latent, config.experts
    if latent is None:
        attention = 2 * hidden * config.head_dim * (config.num_heads + config.num_kv_heads)
    else:
        queries = config.num_heads * (latent.nope_head_dim + latent.rope_head_dim)
        key_values = config.num_heads * (latent.nope_head_dim + latent.value_head_dim)
        rank = latent.query_rank
        attention = hidden * queries if rank is None else rank * (hidden + queries)
        attention += hidden * latent.cached_size + latent.rank * key_values
        attention += hidden * config.num_heads * latent.value_head_dim
    if experts is None or not config.is_sparse(layer):
        return attention + 3 * hidden * config.intermediate_size
    inner = experts.top_k * experts.intermediate_size + experts.shared_intermediate_size
    return attention + hidden * (3 * inner + experts.num_experts)


def _check_expert_axis(config: ModelConfig, dims: ParallelDims) -> None:
    if dims.ep == 1:
        return
    if config.experts is None:
        raise PartitionError(f"ep={dims.ep}, but {config.architecture} has no experts; use ep = 1")
    if dims.ep < 1 or dims.tp % dims.ep:
        raise PartitionError(f"ep={dims.ep} does not divide tp={dims.tp}: expert groups are made of tensor ranks")


def _checked_weights(weights: Sequence[float] | None, dims: ParallelDims) -> list[list[float]]:
    """Speeds by stage and tensor rank."""
    flat = [1.0] * dims.world_size if weights is None else [float(weight) for weight in weights]
    if len(flat) != dims.world_size:
        raise PartitionError(f"weights has {len(flat)} entries; give one for each of the {dims.world_size} ranks")
    if not all(math.isfinite(weight) and weight > 0 for weight in flat):
        raise PartitionError(f"weights={flat}: every weight must be a positive number")
    return [flat[start : start + dims.tp] for start in range(0, dims.world_size, dims.tp)]


def _split_layers(config: ModelConfig, speeds: Sequence[float], costs: StageCosts) -> tuple[Span, ...]:
    """Cut the layers so that the slowest stage, counting the embedding and the head, is as fast as can be."""
    if len(speeds) > config.num_layers:
        raise PartitionError(
            f"num_layers={config.num_layers} is fewer than pp={len(speeds)}; use fewer stages, more tp"
        )

    def stage_time(stage: int, start: int, end: int) -> float:
        ends = costs.embedding * (start == 0) + costs.head * (end == config.num_layers)
        return (costs.layers(start, end) + ends) / speeds[stage]

    cuts = _balanced_cuts(config.num_layers, len(speeds), stage_time)
    return tuple(Span(start, end) for start, end in itertools.pairwise(cuts))


def _head_shard(start: int, end: int, group: int) -> HeadShard:
    """The shard of query heads `[start, end)` of a model with `group` query heads a KV head."""
    kv_heads = Span(start // group, math.ceil(end / group))
    runs = [range(max(start, kv * group), min(end, (kv + 1) * group)) for kv in range(kv_heads.start, kv_heads.end)]
    group_size = max(map(len, runs))
    padded = [[*run, *[None] * (group_size - len(run))] for run in runs]
    return HeadShard(Span(start, end), kv_heads, group_size, tuple(itertools.chain.from_iterable(padded)))


def _deal(units: int, weights: Sequence[float]) -> list[int]:
    """Whole units in proportion to weights, at least one each; with equal weights counts differ by at most one."""
    total = sum(weights)
    counts = [max(1, math.floor(units * weight / total)) for weight in weights]
    ranks = range(len(weights))
    while sum(counts) > units:
        counts[max((rank for rank in ranks if counts[rank] > 1), key=lambda rank: counts[rank] / weights[rank])] -= 1
    while sum(counts) < units:
        counts[min(ranks, key=lambda rank: (counts[rank] + 1) / weights[rank])] += 1
    return counts


def _balanced_cuts(units: int, parts: int, cost: Callable[[int, int, int], float]) -> list[int]:
    """Cut `[0, units)` into `parts` non-empty runs: smallest possible largest cost, then a small sum of squares.

    `cost(part, start, end)` must not fall when a run grows to the left. Exact in the largest cost (dynamic programme
    over part and end); the sum of squares only breaks ties. Returns the `parts + 1` cuts, both ends included.
    """
    unreachable = (math.inf, math.inf)
    best: list[tuple[float, float]] = [(0.0, 0.0)] + [unreachable] * units
    chosen: list[list[int]] = []
    for part in range(parts):
        following = [unreachable] * (units + 1)
        starts = [0] * (units + 1)
        for end in range(part + 1, units - (parts - part - 1) + 1):
            for start in range(end - 1, part - 1, -1):
                own = cost(part, start, end)
                if own > following[end][0]:
                    break
                candidate = (max(best[start][0], own), best[start][1] + own * own)
                if candidate < following[end]:
                    following[end], starts[end] = candidate, start
        best = following
        chosen.append(starts)
    cuts = [units]
    for starts in reversed(chosen):
        cuts.append(starts[cuts[-1]])
    return cuts[::-1]
