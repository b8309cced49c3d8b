"""What each layer, the embedding and the head cost, in time or bytes, and the stages that follow. Numbers only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.parallel.cuts import PartitionError, Span, balanced_cuts


@dataclass(frozen=True, slots=True)
class StageCosts:
    """What each part of a model takes: time of one pass in any one unit, or bytes."""

    layer: float | Sequence[float]
    """One number a layer, or the same for all."""
    embedding: float
    head: float

    def stages(self, num_layers: int) -> Callable[[int, int], float]:
        """Cost of a stage of layers [start, end): the first with the embedding, the last with the head."""
        each = self.layer if isinstance(self.layer, Sequence) else itertools.repeat(self.layer, num_layers)
        before = list(itertools.accumulate(each, initial=0.0))

        def cost(start: int, end: int) -> float:
            ends = self.embedding * (start == 0) + self.head * (end == num_layers)
            return before[end] - before[start] + ends

        return cost


@dataclass(frozen=True, slots=True)
class StageMemory:
    """What the parts of a model take of memory, and how much each stage's ranks have together. Bytes."""

    needed: StageCosts
    room: Sequence[float]


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


def split_layers(
    config: ModelConfig, speeds: Sequence[float], costs: StageCosts, memory: StageMemory | None = None
) -> tuple[Span, ...]:
    """Cut the layers so that the slowest stage is as fast as can be and, if `memory` is given, each stage has room.

    Args:
        speeds: relative speed of each stage.

    Raises:
        PartitionError: fewer layers than stages, or no cut leaves room everywhere.
    """
    count = config.num_layers
    if len(speeds) > count:
        raise PartitionError(f"num_layers={count} is fewer than pp={len(speeds)}; use fewer stages, more tp")

    time, size = costs.stages(count), memory.needed.stages(count) if memory else None

    def stage_time(stage: int, start: int, end: int) -> float:
        if size is not None and memory is not None and size(start, end) > memory.room[stage]:
            return math.inf
        return time(start, end) / speeds[stage]

    cuts = balanced_cuts(count, len(speeds), stage_time)
    if cuts is None:
        assert memory is not None, "only memory makes a stage impossible"
        assert size is not None
        raise PartitionError(
            f"no cut of {count} layers into pp={len(speeds)} stages fits their memory: "
            f"{size(0, count) / 1e9:.1f} GB needed, {sum(memory.room) / 1e9:.1f} GB there"
        )
    return tuple(Span(start, end) for start, end in itertools.pairwise(cuts))
