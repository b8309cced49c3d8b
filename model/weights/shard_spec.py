"""Which tensors an architecture has and along which dimension each is cut, as data. Knows no files and no torch.

A family's table (`model.weights.tables`) is a list of `TensorRule`s that name each dimension; how a dimension is cut
follows from its name. Tensors are named as in the published checkpoints.
"""

from __future__ import annotations

import enum
import fnmatch
import math
from dataclasses import dataclass

from model.config import ModelConfig
from model.parallel.partition import RankShard, Span
from model.quantization import IntegerForm, integer_bytes


class Cut(enum.Enum):
    """What of a dimension is dealt to ranks."""

    WHOLE = "whole"
    """Nothing: every rank has all of it."""
    VOCAB = "vocabulary"
    QUERY_HEADS = "query heads"
    KV_HEADS = "KV heads"
    INTERMEDIATE = "intermediate"
    EXPERTS = "experts"
    EXPERT_INTERMEDIATE = "intermediate of an expert"
    SHARED_INTERMEDIATE = "intermediate of the shared expert"


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension of a weight: units that are dealt to ranks as `cut` says, of `width` elements each."""

    cut: Cut
    width: int = 1
    block: int = 1
    """Elements that share one entry: the dimension of scales, of which a rank reads all that its elements need."""

    def of_blocks(self, block: int) -> Dim:
        """The dimension of the scales of this one."""
        return Dim(self.cut, self.width, block)


class Place(enum.Enum):
    """The stages that hold a tensor."""

    FIRST_STAGE = "first"
    EACH_LAYER = "layer"
    LAST_STAGE = "last"


WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One tensor; one a layer where `name` holds `{layer}`, one an expert where it holds `{expert}`."""

    name: str
    dims: tuple[Dim, ...]
    place: Place
    layers: tuple[int, ...] | None = None
    """The layers that have it; None: all."""
    on_one_rank: bool = False
    """A bias added to a sum over the ranks: rank 0 holds it, the others zeros."""
    tied_to: str | None = None
    """The checkpoint's tensor to read instead, as the model ties its embeddings."""
    stored_as: tuple[str, ...] = WEIGHT_DTYPES
    """The format's dtypes that are served."""
    kept: bool = False
    """Held in memory as it is stored, whatever the dtype of the model: quantised weights, their scales."""
    bytes_kept: int = 0
    """Bytes of an element that is kept."""
    made: IntegerForm | None = None
    """What its tensors, which are matrices, are made into as they are loaded; None: the model's dtype."""

    @property
    def source(self) -> str:
        """The checkpoint's name of it, with `{layer}` still in place."""
        return self.tied_to or self.name


@dataclass(frozen=True, slots=True)
class StageTensor:
    """One tensor that a rank loads."""

    name: str
    source: str
    """Its name in the checkpoint, which differs from `name` where embeddings are tied."""
    rule: TensorRule


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """The tensors of one model."""

    rules: tuple[TensorRule, ...]
    ignored: tuple[str, ...] = ()
    """Patterns of stored tensors that are computed instead of loaded, or belong to parts that are not served."""

    def checkpoint_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this model must hold, with its shape."""
        return {
            source: tuple(dim_size(config, dim) for dim in tensor.dims)
            for source, tensor in self.checkpoint_tensors(config).items()
        }

    def checkpoint_tensors(self, config: ModelConfig) -> dict[str, TensorRule]:
        """The rule of every tensor that a checkpoint of this model must hold."""
        layers, experts = Span(0, config.num_layers), Span(0, config.experts.num_experts if config.experts else 0)
        return {source: rule for rule in self.rules for _, source in _names(rule, layers, experts)}

    def ignores(self, name: str) -> bool:
        """Whether a stored tensor that is not in `checkpoint_shapes` may be there all the same."""
        tied_copy = any(rule.name == name and rule.tied_to for rule in self.rules)
        return tied_copy or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored)

    def stage_tensors(self, shard: RankShard) -> list[StageTensor]:
        """What one rank loads, in the model's order; layers and experts keep their numbers in the whole model."""
        held = {
            Place.FIRST_STAGE: shard.is_first_stage,
            Place.EACH_LAYER: True,
            Place.LAST_STAGE: shard.is_last_stage,
        }
        return [
            StageTensor(name, source, rule)
            for rule in self.rules
            if held[rule.place]
            for name, source in _names(rule, shard.layers, shard.experts.experts)
        ]


def dim_size(config: ModelConfig, dim: Dim) -> int:
    """Size of a dimension in the whole model."""
    experts = config.experts
    units = {
        Cut.WHOLE: 1,
        Cut.VOCAB: config.vocab_size,
        Cut.QUERY_HEADS: config.num_heads,
        Cut.KV_HEADS: config.num_kv_heads,
        Cut.INTERMEDIATE: config.intermediate_size,
        Cut.EXPERTS: experts.num_experts if experts else 0,
        Cut.EXPERT_INTERMEDIATE: experts.intermediate_size if experts else 0,
        Cut.SHARED_INTERMEDIATE: experts.shared_intermediate_size if experts else 0,
    }
    return math.ceil(units[dim.cut] * dim.width / dim.block)


def dim_span(shard: RankShard, dim: Dim) -> Span:
    """The part of a dimension that a rank reads from the checkpoint (padding is not in it)."""
    spans = {
        Cut.WHOLE: Span(0, 1),
        Cut.VOCAB: shard.vocab,
        Cut.QUERY_HEADS: shard.heads.query_heads,
        Cut.KV_HEADS: shard.heads.kv_heads,
        Cut.INTERMEDIATE: shard.intermediate,
        Cut.EXPERTS: shard.experts.experts,
        Cut.EXPERT_INTERMEDIATE: shard.experts.intermediate,
        Cut.SHARED_INTERMEDIATE: shard.experts.shared_intermediate,
    }
    units = spans[dim.cut]
    return Span(units.start * dim.width // dim.block, math.ceil(units.end * dim.width / dim.block))


def local_shape(shard: RankShard, rule: TensorRule) -> list[int]:
    """Shape of a tensor on a rank, zero-padded query heads included."""
    padded = len(shard.heads.slots)
    return [
        padded * dim.width if dim.cut is Cut.QUERY_HEADS and dim.block == 1 else dim_span(shard, dim).size
        for dim in rule.dims
    ]


def rank_bytes(spec: ShardSpec, shard: RankShard, bytes_per_element: float) -> int:
    """Bytes of one rank's weights as they are held in memory, padding included; tied weights count once.

    `bytes_per_element` is of weights that are converted, and may be fractional.
    """
    converted = kept = 0
    for rule in spec.rules:
        shape, count = local_shape(shard, rule), _count(rule, shard)
        elements = math.prod(shape) * count
        if rule.kept:
            kept += elements * rule.bytes_kept
        elif rule.made:
            kept += integer_bytes(rule.made, *shape) * count
        else:
            converted += elements
    return math.ceil(converted * bytes_per_element) + kept


def _count(rule: TensorRule, shard: RankShard) -> int:
    """How many tensors of a rule a rank holds; a tied one is another rule's where both are on the rank."""
    if rule.place is Place.FIRST_STAGE:
        return int(shard.is_first_stage)
    if rule.place is Place.LAST_STAGE:
        return int(shard.is_last_stage and not (rule.tied_to and shard.is_first_stage))
    return len(_layers(rule, shard.layers)) * (shard.experts.experts.size if "{expert}" in rule.name else 1)


def _layers(rule: TensorRule, layers: Span) -> list[int]:
    return [i for i in range(layers.start, layers.end) if rule.layers is None or i in rule.layers]


def _names(rule: TensorRule, layers: Span, experts: Span) -> list[tuple[str, str]]:
    """(name, name in the checkpoint) of each of a rule's tensors."""
    if rule.place is not Place.EACH_LAYER:
        return [(rule.name, rule.source)]
    each = range(experts.start, experts.end) if "{expert}" in rule.name else range(1)
    return [
        (rule.name.format(layer=i, expert=e), rule.source.format(layer=i, expert=e))
        for i in _layers(rule, layers)
        for e in each
    ]
