"""Which tensors an architecture has and along which dimension each is cut, as data. Knows no files and no torch.

A family is a table of `TensorRule`s that name each dimension; how a dimension is cut follows from its name. Tensors
are named as in the checkpoints that transformers writes.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelConfig, UnsupportedModelError
from model.parallel.partition import RankShard, Span


class Dim(enum.Enum):
    """A dimension of a weight. All but HIDDEN are cut over the tensor ranks."""

    HIDDEN = "hidden"
    VOCAB = "vocab"
    QUERY = "query heads x head_dim"
    KV = "KV heads x head_dim"
    INTERMEDIATE = "intermediate"


class Place(enum.Enum):
    """The stages that hold a tensor."""

    FIRST_STAGE = "first"
    EACH_LAYER = "layer"
    LAST_STAGE = "last"


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One tensor, or one a layer where `name` holds `{layer}`."""

    name: str
    dims: tuple[Dim, ...]
    place: Place
    only_if: str | None = None
    """The field of `ModelConfig` that says whether the model has it."""
    on_one_rank: bool = False
    """A bias added to a sum over the ranks: rank 0 holds it, the others zeros."""
    tied_to: str | None = None
    """The checkpoint's tensor to read instead if the model ties its embeddings."""

    def source(self, config: ModelConfig) -> str:
        """The checkpoint's name of it, with `{layer}` still in place."""
        return self.tied_to if self.tied_to and config.tie_word_embeddings else self.name


@dataclass(frozen=True, slots=True)
class StageTensor:
    """One tensor that a rank loads."""

    name: str
    source: str
    """Its name in the checkpoint, which differs from `name` where embeddings are tied."""
    rule: TensorRule


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """An architecture's tensors."""

    rules: tuple[TensorRule, ...]
    ignored: tuple[str, ...] = ()
    """Patterns of stored tensors that are computed instead of loaded."""

    def checkpoint_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this model must hold, with its shape."""
        return {
            name: tuple(dim_size(config, dim) for dim in rule.dims)
            for rule in self._rules_for(config)
            for name in _names(rule.source(config), rule.place, Span(0, config.num_layers))
        }

    def ignores(self, name: str, config: ModelConfig) -> bool:
        """Whether a stored tensor that is not in `checkpoint_shapes` may be there all the same."""
        tied_copy = any(rule.name == name and rule.source(config) != name for rule in self.rules)
        return tied_copy or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored)

    def stage_tensors(self, config: ModelConfig, shard: RankShard) -> list[StageTensor]:
        """What one rank loads, in the model's order; layers keep their numbers in the whole model."""
        held = {
            Place.FIRST_STAGE: shard.is_first_stage,
            Place.EACH_LAYER: True,
            Place.LAST_STAGE: shard.is_last_stage,
        }
        return [
            StageTensor(name, source, rule)
            for rule in self._rules_for(config)
            if held[rule.place]
            for name, source in zip(
                _names(rule.name, rule.place, shard.layers),
                _names(rule.source(config), rule.place, shard.layers),
                strict=True,
            )
        ]

    def _rules_for(self, config: ModelConfig) -> Iterator[TensorRule]:
        return (rule for rule in self.rules if rule.only_if is None or getattr(config, rule.only_if))


def spec_for(config: ModelConfig) -> ShardSpec:
    """The table of the model's architecture.

    Raises:
        UnsupportedModelError: there is none.
    """
    try:
        return SPECS[config.architecture]
    except KeyError:
        known = ", ".join(SPECS)
        raise UnsupportedModelError(f"no weight table for {config.architecture!r}; there are: {known}") from None


def dim_size(config: ModelConfig, dim: Dim) -> int:
    """Size of a dimension in the whole model."""
    return {
        Dim.HIDDEN: config.hidden_size,
        Dim.VOCAB: config.vocab_size,
        Dim.QUERY: config.num_heads * config.head_dim,
        Dim.KV: config.num_kv_heads * config.head_dim,
        Dim.INTERMEDIATE: config.intermediate_size,
    }[dim]


def dim_span(config: ModelConfig, shard: RankShard, dim: Dim) -> Span:
    """The part of a dimension that a rank reads from the checkpoint (padding is not in it)."""
    heads = shard.heads
    return {
        Dim.HIDDEN: Span(0, config.hidden_size),
        Dim.VOCAB: shard.vocab,
        Dim.QUERY: Span(heads.query_heads.start * config.head_dim, heads.query_heads.end * config.head_dim),
        Dim.KV: Span(heads.kv_heads.start * config.head_dim, heads.kv_heads.end * config.head_dim),
        Dim.INTERMEDIATE: shard.intermediate,
    }[dim]


def _names(pattern: str, place: Place, layers: Span) -> list[str]:
    if place is not Place.EACH_LAYER:
        return [pattern]
    return [pattern.format(layer=layer) for layer in range(layers.start, layers.end)]


def _llama() -> ShardSpec:
    layer, each = "model.layers.{layer}.", Place.EACH_LAYER
    attention, mlp = layer + "self_attn.", layer + "mlp."
    hidden, query, kv, intermediate = Dim.HIDDEN, Dim.QUERY, Dim.KV, Dim.INTERMEDIATE
    return ShardSpec(
        rules=(
            TensorRule("model.embed_tokens.weight", (Dim.VOCAB, hidden), Place.FIRST_STAGE),
            TensorRule(layer + "input_layernorm.weight", (hidden,), each),
            TensorRule(attention + "q_proj.weight", (query, hidden), each),
            TensorRule(attention + "q_proj.bias", (query,), each, only_if="attention_bias"),
            TensorRule(attention + "k_proj.weight", (kv, hidden), each),
            TensorRule(attention + "k_proj.bias", (kv,), each, only_if="attention_bias"),
            TensorRule(attention + "v_proj.weight", (kv, hidden), each),
            TensorRule(attention + "v_proj.bias", (kv,), each, only_if="attention_bias"),
            TensorRule(attention + "o_proj.weight", (hidden, query), each),
            TensorRule(attention + "o_proj.bias", (hidden,), each, only_if="attention_bias", on_one_rank=True),
            TensorRule(layer + "post_attention_layernorm.weight", (hidden,), each),
            TensorRule(mlp + "gate_proj.weight", (intermediate, hidden), each),
            TensorRule(mlp + "gate_proj.bias", (intermediate,), each, only_if="mlp_bias"),
            TensorRule(mlp + "up_proj.weight", (intermediate, hidden), each),
            TensorRule(mlp + "up_proj.bias", (intermediate,), each, only_if="mlp_bias"),
            TensorRule(mlp + "down_proj.weight", (hidden, intermediate), each),
            TensorRule(mlp + "down_proj.bias", (hidden,), each, only_if="mlp_bias", on_one_rank=True),
            TensorRule("model.norm.weight", (hidden,), Place.LAST_STAGE),
            TensorRule("lm_head.weight", (Dim.VOCAB, hidden), Place.LAST_STAGE, tied_to="model.embed_tokens.weight"),
        ),
        ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),
    )


SPECS = {"LlamaForCausalLM": _llama()}
"""By `ModelConfig.architecture`."""
