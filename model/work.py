"""What passes need on one rank, in floating-point operations and bytes: what utilisation is the share of. No torch.

Counted is what the arithmetic needs: two operations a multiply-add of each product and of attention over the keys that
a token sees; weights read once a pass, keys and values read once a sequence and written once a token. Padding, copies
of activations and anything computed twice are the kernels' own, and are not counted.

Legend: a *pair* is a token and one key that it sees; a *key* is one position that a sequence reads in a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from model.config import ModelConfig
from model.parallel.partition import RankShard, kv_block_bytes
from model.weights.shard_spec import Place, ShardSpec, rank_bytes


def windows_of(config: ModelConfig) -> tuple[int, ...]:
    """The kinds of attention span in a model, 0 for all keys; tallies count pairs and keys for each."""
    return tuple(sorted({config.window(layer) for layer in range(config.num_layers)}))


def pairs_seen(start: int, count: int, window: int = 0) -> int:
    """Pairs of `count` tokens from position `start` on; `window`: most keys that a token sees, 0: all before it."""
    whole = count if not window else max(0, min(count, window - start))
    return whole * start + whole * (whole + 1) // 2 + (count - whole) * window


def keys_read(start: int, count: int, window: int = 0) -> int:
    """Keys that `count` tokens from position `start` on read together."""
    return start + count if not window else min(start + count, window + count - 1)


@dataclass(slots=True)
class Tally:
    """Passes added up."""

    windows: tuple[int, ...] = (0,)
    num_experts: int = 1
    top_k: int = 1
    passes: int = 0
    tokens: int = 0
    samples: int = 0
    """Rows that sampled."""
    pairs: list[int] = field(default_factory=list)
    """By window."""
    keys: list[int] = field(default_factory=list)
    """By window."""
    touched: float = 0.0
    """Share of the experts that each pass's tokens reach, summed; tokens are taken to choose at random."""

    @classmethod
    def of(cls, config: ModelConfig) -> Tally:
        """An empty one for a model."""
        windows, experts = windows_of(config), config.experts
        if experts is None:
            return cls(windows, pairs=[0] * len(windows), keys=[0] * len(windows))
        return cls(windows, experts.num_experts, experts.top_k, pairs=[0] * len(windows), keys=[0] * len(windows))

    def add(self, rows: Sequence[tuple[int, int]], samples: int) -> None:
        """A pass over rows (first position, tokens), `samples` of which sample."""
        tokens = sum(count for _, count in rows)
        self.passes += 1
        self.tokens += tokens
        self.samples += samples
        self.touched += 1 - (1 - self.top_k / self.num_experts) ** tokens
        for index, window in enumerate(self.windows):
            self.pairs[index] += sum(pairs_seen(start, count, window) for start, count in rows)
            self.keys[index] += sum(keys_read(start, count, window) for start, count in rows)

    def add_decodes(self, count: int, context: int) -> None:
        """As `add`, for `count` rows of one token that all sample and read `context` keys together: a sum that the
        caller has, and that does not tell what windows cut off.

        Raises:
            ValueError: the model has windows.
        """
        if self.windows != (0,):
            raise ValueError(f"windows {self.windows}: the rows are needed")
        self.passes += 1
        self.tokens += count
        self.samples += count
        self.touched += 1 - (1 - self.top_k / self.num_experts) ** count
        self.pairs[0] += context
        self.keys[0] += context


@dataclass(frozen=True, slots=True)
class RankRates:
    """What each unit of a tally costs one rank."""

    flops_per_token: float
    flops_per_sample: float
    flops_per_pair: tuple[float, ...]
    """By window."""
    bytes_per_pass: float
    """Weights, of all experts none."""
    bytes_per_touched: float
    """Weights of all its experts."""
    bytes_per_token: float
    """Keys and values written."""
    bytes_per_key: tuple[float, ...]
    """By window."""

    def flops(self, tally: Tally) -> float:
        """Floating-point operations of everything in a tally."""
        pairs = sum(cost * count for cost, count in zip(self.flops_per_pair, tally.pairs, strict=True))
        return self.flops_per_token * tally.tokens + self.flops_per_sample * tally.samples + pairs

    def memory_bytes(self, tally: Tally) -> float:
        """Bytes read and written by everything in a tally."""
        keys = sum(cost * count for cost, count in zip(self.bytes_per_key, tally.keys, strict=True))
        weights = self.bytes_per_pass * tally.passes + self.bytes_per_touched * tally.touched
        return weights + self.bytes_per_token * tally.tokens + keys


def rank_rates(config: ModelConfig, spec: ShardSpec, shard: RankShard, bytes_per_element: float) -> RankRates:
    """The costs of a rank.

    Args:
        spec: the model's tensors.
        bytes_per_element: of weights that are not quantised, and of keys and values.
    """
    layers = range(shard.layers.start, shard.layers.end)
    windows = windows_of(config)
    counts = [sum(config.window(layer) == window for layer in layers) for window in windows]
    head = config.hidden_size * shard.vocab.size if shard.is_last_stage else 0
    token_bytes = kv_block_bytes(config, shard, 1, bytes_per_element)
    weights = experts = 0.0
    for rule in spec.rules:
        if rule.place is Place.EACH_LAYER:
            size = rank_bytes(ShardSpec((rule,)), shard, bytes_per_element)
            if "{expert}" in rule.name:
                experts += size
            else:
                weights += size
    return RankRates(
        flops_per_token=2.0 * sum(_elements(config, shard, layer) for layer in layers),
        flops_per_sample=2.0 * head,
        flops_per_pair=tuple(count * _pair_flops(config, shard) for count in counts),
        bytes_per_pass=weights + head * bytes_per_element,
        bytes_per_touched=experts,
        bytes_per_token=float(token_bytes),
        bytes_per_key=tuple(count * token_bytes / len(layers) for count in counts),
    )


def _elements(config: ModelConfig, shard: RankShard, layer: int) -> float:
    """Weights of one layer that a token is multiplied with on this rank; of the experts, an average token's share."""
    hidden, latent, experts = config.hidden_size, config.latent, config.experts
    heads, kv_heads = shard.heads.query_heads.size, shard.heads.kv_heads.size
    if latent is None:
        attention = 2 * hidden * config.head_dim * (heads + kv_heads)
    else:
        queries = heads * (latent.nope_head_dim + latent.rope_head_dim)
        rank = latent.query_rank
        attention = hidden * queries if rank is None else rank * (hidden + queries)
        attention += hidden * latent.cached_size
        attention += latent.rank * heads * (latent.nope_head_dim + latent.value_head_dim)
        attention += hidden * heads * latent.value_head_dim
    if experts is None or not config.is_sparse(layer):
        return attention + 3 * hidden * shard.intermediate.size
    chosen = experts.top_k * shard.experts.experts.size / experts.num_experts
    inner = chosen * shard.experts.intermediate.size + shard.experts.shared_intermediate.size
    return attention + hidden * (3 * inner + experts.num_experts)


def _pair_flops(config: ModelConfig, shard: RankShard) -> float:
    """Score and weighted value of one pair in one layer, over this rank's query heads."""
    heads = shard.heads.query_heads.size
    if config.latent is None:
        return 4.0 * heads * config.head_dim
    return 2.0 * heads * (config.latent.cached_size + config.latent.rank)
