"""Which layers, heads, MLP columns, experts and vocabulary rows each rank holds. Only numbers: no torch, no device.

Sizes need not divide: `heads` says what happens to attention, `costs` how stages are balanced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.parallel.costs import StageCosts as StageCosts
from model.parallel.costs import StageMemory as StageMemory
from model.parallel.costs import active_layer_elements as active_layer_elements
from model.parallel.costs import modelled_costs as modelled_costs
from model.parallel.costs import split_layers
from model.parallel.cuts import NOTHING as NOTHING
from model.parallel.cuts import PartitionError as PartitionError
from model.parallel.cuts import Span as Span
from model.parallel.cuts import split_dim as split_dim
from model.parallel.dims import ParallelDims, RankCoordinates
from model.parallel.heads import HeadShard as HeadShard
from model.parallel.heads import split_heads as split_heads


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


def partition(
    config: ModelConfig,
    dims: ParallelDims,
    *,
    weights: Sequence[float] | None = None,
    quantum: int = 1,
    costs: StageCosts | None = None,
    memory: StageMemory | None = None,
) -> tuple[RankShard, ...]:
    """Cut a model for `dims.world_size` ranks; entry `i` belongs to world rank `i`.

    Args:
        weights: relative speed of each world rank's device; default: all alike.
        quantum: MLP columns and vocabulary rows are cut only at multiples of it (32 for block-quantised weights).
        costs: time of a layer, the embedding and the head; default: `modelled_costs`.
        memory: what must fit where; default: nothing is asked.

    Raises:
        PartitionError: more ranks than there is something to deal out, or no room.
    """
    if dims.tp < 1 or dims.pp < 1:
        raise PartitionError(f"tp={dims.tp}, pp={dims.pp}: both must be at least 1")
    _check_expert_axis(config, dims)
    if quantum < 1:
        raise PartitionError(f"quantum={quantum}: must be at least 1")
    speeds = _checked_weights(weights, dims)
    stage_layers = split_layers(config, [sum(stage) for stage in speeds], costs or modelled_costs(config), memory)
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


def kv_block_bytes(config: ModelConfig, shard: RankShard, block_size: int, bytes_per_element: float) -> int:
    """Bytes that one block of `block_size` tokens' keys and values takes on this rank, over all its layers.

    Every rank keeps a whole latent (twice on CPU: in the order of keys and in that of values).
    """
    if config.latent is not None:
        per_token = 2 * config.latent.cached_size
    else:
        per_token = 2 * shard.heads.kv_heads.size * config.head_dim
    return math.ceil(per_token * shard.layers.size * block_size * bytes_per_element)


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
