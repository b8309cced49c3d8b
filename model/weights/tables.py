"""The tensors of each family, by their published names. Data: what each is called, how its dimensions are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from model.config import ModelConfig
from model.config_parts import UnsupportedModelError
from model.parallel.dims import ParallelDims, RankCoordinates
from model.parallel.partition import NOTHING, RankShard, Span, StageCosts, partition
from model.quantization import IntegerForm, Quantization
from model.weights.shard_spec import Cut, Dim, Place, ShardSpec, TensorRule, rank_bytes

Rules = Iterator[TensorRule]


@dataclass(frozen=True, slots=True)
class Table:
    """Writes rules for one model."""

    config: ModelConfig

    @property
    def hidden(self) -> Dim:
        return self.whole(self.config.hidden_size)

    def whole(self, size: int) -> Dim:
        return Dim(Cut.WHOLE, size)

    def around(self, layers: Rules) -> Rules:
        """Embedding, layers, last norm and head."""
        vocab, embedding = Dim(Cut.VOCAB), "model.embed_tokens.weight"
        tied_to = embedding if self.config.tie_word_embeddings else None
        yield TensorRule(embedding, (vocab, self.hidden), Place.FIRST_STAGE)
        yield from layers
        yield TensorRule("model.norm.weight", (self.hidden,), Place.LAST_STAGE)
        yield TensorRule("lm_head.weight", (vocab, self.hidden), Place.LAST_STAGE, tied_to=tied_to)

    def each(
        self, name: str, *dims: Dim, layers: tuple[int, ...] | None = None, on_one_rank: bool = False
    ) -> TensorRule:
        """A tensor of every layer, or of some."""
        return TensorRule("model.layers.{layer}." + name, dims, Place.EACH_LAYER, layers, on_one_rank)

    def norms(self, *names: str) -> Rules:
        for name in names:
            yield self.each(f"{name}.weight", self.hidden)

    def attention(self, *, bias: bool, output_bias: bool, head_norms: bool = False) -> Rules:
        """Grouped-query attention."""
        size, prefix = self.config.head_dim, "self_attn."
        query, kv = Dim(Cut.QUERY_HEADS, size), Dim(Cut.KV_HEADS, size)
        for part, rows in (("q_proj", query), ("k_proj", kv), ("v_proj", kv)):
            yield self.each(f"{prefix}{part}.weight", rows, self.hidden)
            if bias:
                yield self.each(f"{prefix}{part}.bias", rows)
        yield self.each(f"{prefix}o_proj.weight", self.hidden, query)
        if output_bias:
            yield self.each(f"{prefix}o_proj.bias", self.hidden, on_one_rank=True)
        for part in ("q_norm", "k_norm") if head_norms else ():
            yield self.each(f"{prefix}{part}.weight", self.whole(size))

    def mlp(
        self,
        prefix: str,
        cut: Cut,
        *,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        bias: bool = False,
        layers: tuple[int, ...] | None = None,
    ) -> Rules:
        """A gated MLP, or an expert."""
        inner, (gate, up, down) = Dim(cut), names
        for name in (gate, up):
            yield self.each(f"{prefix}.{name}.weight", inner, self.hidden, layers=layers)
            if bias:
                yield self.each(f"{prefix}.{name}.bias", inner, layers=layers)
        yield self.each(f"{prefix}.{down}.weight", self.hidden, inner, layers=layers)
        if bias:
            yield self.each(f"{prefix}.{down}.bias", self.hidden, layers=layers, on_one_rank=True)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.config.num_layers) if not self.config.is_sparse(i))

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.config.num_layers) if self.config.is_sparse(i))

    @property
    def num_experts(self) -> Dim:
        assert self.config.experts is not None
        return self.whole(self.config.experts.num_experts)


def _llama_like(t: Table, *, bias: bool, output_bias: bool, head_norms: bool) -> Rules:
    yield from t.norms("input_layernorm", "post_attention_layernorm")
    yield from t.attention(bias=bias, output_bias=output_bias, head_norms=head_norms)


def _llama(t: Table) -> Rules:
    bias = t.config.attention_bias
    yield from _llama_like(t, bias=bias, output_bias=bias, head_norms=False)
    yield from t.mlp("mlp", Cut.INTERMEDIATE, bias=t.config.mlp_bias)


def _qwen2(t: Table) -> Rules:
    yield from _llama_like(t, bias=True, output_bias=False, head_norms=False)
    yield from t.mlp("mlp", Cut.INTERMEDIATE)


def _qwen3(t: Table) -> Rules:
    bias = t.config.attention_bias
    yield from _llama_like(t, bias=bias, output_bias=bias, head_norms=True)
    yield from t.mlp("mlp", Cut.INTERMEDIATE, layers=t.dense_layers)


def _qwen3_moe(t: Table) -> Rules:
    yield from _qwen3(t)
    yield t.each("mlp.gate.weight", t.num_experts, t.hidden, layers=t.sparse_layers)
    yield from t.mlp("mlp.experts.{expert}", Cut.EXPERT_INTERMEDIATE, layers=t.sparse_layers)


def _mixtral(t: Table) -> Rules:
    yield from _llama_like(t, bias=False, output_bias=False, head_norms=False)
    yield t.each("block_sparse_moe.gate.weight", t.num_experts, t.hidden)
    names = ("w1", "w3", "w2")
    yield from t.mlp("block_sparse_moe.experts.{expert}", Cut.EXPERT_INTERMEDIATE, names=names)


def _gemma3(t: Table) -> Rules:
    yield from t.norms("input_layernorm", "post_attention_layernorm")
    yield from t.norms("pre_feedforward_layernorm", "post_feedforward_layernorm")
    bias = t.config.attention_bias
    yield from t.attention(bias=bias, output_bias=bias, head_norms=True)
    yield from t.mlp("mlp", Cut.INTERMEDIATE)


def _gpt_oss(t: Table) -> Rules:
    """Experts are stacked; gate and up are interleaved."""
    bias = t.config.attention_bias
    yield from _llama_like(t, bias=bias, output_bias=bias, head_norms=False)
    yield t.each("self_attn.sinks", Dim(Cut.QUERY_HEADS))
    yield t.each("mlp.router.weight", t.num_experts, t.hidden)
    yield t.each("mlp.router.bias", t.num_experts)
    experts, both, inner = Dim(Cut.EXPERTS), Dim(Cut.EXPERT_INTERMEDIATE, 2), Dim(Cut.EXPERT_INTERMEDIATE)
    yield t.each("mlp.experts.gate_up_proj_bias", experts, both)
    yield t.each("mlp.experts.down_proj_bias", experts, t.hidden)
    if t.config.quantisation is None:
        yield t.each("mlp.experts.gate_up_proj", experts, t.hidden, both)
        yield t.each("mlp.experts.down_proj", experts, inner, t.hidden)
        return
    group = t.config.quantisation.block
    for name, rows, columns in (("gate_up_proj", both, t.hidden), ("down_proj", t.hidden, inner)):
        scales = t.each(f"mlp.experts.{name}_scales", experts, rows, columns.of_blocks(group))
        blocks = t.each(f"mlp.experts.{name}_blocks", *scales.dims, t.whole(group // 2))
        for rule in (blocks, scales):
            yield replace(rule, stored_as=("U8",), kept=True, bytes_kept=1)


def _deepseek_v3(t: Table) -> Rules:
    latent = t.config.latent
    assert latent is not None
    yield from t.norms("input_layernorm", "post_attention_layernorm")
    head = latent.nope_head_dim + latent.rope_head_dim
    queries = Dim(Cut.QUERY_HEADS, head)
    if latent.query_rank is None:
        yield t.each("self_attn.q_proj.weight", queries, t.hidden)
    else:
        rank = t.whole(latent.query_rank)
        yield t.each("self_attn.q_a_proj.weight", rank, t.hidden)
        yield t.each("self_attn.q_a_layernorm.weight", rank)
        yield t.each("self_attn.q_b_proj.weight", queries, rank)
    yield t.each("self_attn.kv_a_proj_with_mqa.weight", t.whole(latent.cached_size), t.hidden)
    yield t.each("self_attn.kv_a_layernorm.weight", t.whole(latent.rank))
    expanded = Dim(Cut.QUERY_HEADS, latent.nope_head_dim + latent.value_head_dim)
    yield t.each("self_attn.kv_b_proj.weight", expanded, t.whole(latent.rank))
    yield t.each("self_attn.o_proj.weight", t.hidden, Dim(Cut.QUERY_HEADS, latent.value_head_dim))
    yield from t.mlp("mlp", Cut.INTERMEDIATE, layers=t.dense_layers)
    sparse = t.sparse_layers
    yield t.each("mlp.gate.weight", t.num_experts, t.hidden, layers=sparse)
    correction = t.each("mlp.gate.e_score_correction_bias", t.num_experts, layers=sparse)
    yield replace(correction, stored_as=("F32",), kept=True, bytes_kept=4)
    yield from t.mlp("mlp.experts.{expert}", Cut.EXPERT_INTERMEDIATE, layers=sparse)
    if t.config.experts is not None and t.config.experts.shared_intermediate_size:
        yield from t.mlp("mlp.shared_experts", Cut.SHARED_INTERMEDIATE, layers=sparse)


def _is_product(rule: TensorRule) -> bool:
    """Whether it is a large matrix of a layer. Routers are not: they are small, and an error sends tokens elsewhere."""
    is_router = rule.name.endswith((".gate.weight", ".router.weight"))
    return len(rule.dims) == 2 and rule.place is Place.EACH_LAYER and rule.name.endswith(".weight") and not is_router


def _with_block_scales(rules: Rules, block: int) -> Rules:
    """FP8: the products of every layer are 8-bit floats, with a scale for each square block."""
    for rule in rules:
        if not _is_product(rule):
            yield rule
            continue
        yield replace(rule, stored_as=("F8_E4M3",), kept=True, bytes_kept=1)
        scales = tuple(dim.of_blocks(block) for dim in rule.dims)
        yield replace(rule, name=rule.name + "_scale_inv", dims=scales, stored_as=("F32",), kept=True, bytes_kept=4)


def _made_smaller(rules: Rules, form: IntegerForm) -> Rules:
    """Products become integers as they are loaded; embedding and head 8-bit ones."""
    for rule in rules:
        is_vocabulary = any(dim.cut is Cut.VOCAB for dim in rule.dims)
        made: IntegerForm | None = "int8" if is_vocabulary else form if _is_product(rule) else None
        yield replace(rule, made=made)


TABLES: Mapping[str, Callable[[Table], Rules]] = {
    "LlamaForCausalLM": _llama,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "MixtralForCausalLM": _mixtral,
    "Gemma3ForCausalLM": _gemma3,
    "GptOssForCausalLM": _gpt_oss,
    "DeepseekV3ForCausalLM": _deepseek_v3,
}
"""By `ModelConfig.architecture`."""


def spec_for(config: ModelConfig, quantization: Quantization = "none") -> ShardSpec:
    """The tensors of a model.

    Raises:
        UnsupportedModelError: there is no table for its architecture, or its weights cannot be made smaller.
    """
    if config.architecture not in TABLES:
        known = ", ".join(TABLES)
        raise UnsupportedModelError(f"no weight table for {config.architecture!r}; there are: {known}")
    table = Table(config)
    rules = TABLES[config.architecture](table)
    if config.quantisation is not None and config.quantisation.method == "fp8":
        rules = _with_block_scales(rules, config.quantisation.block)
    if quantization != "none" and config.quantisation is not None:
        raise UnsupportedModelError(
            f"quantization {quantization}: the checkpoint is already quantised ({config.quantisation.method}); "
            "use quantization none"
        )
    ignored = ["model.layers.*.self_attn.rotary_emb.inv_freq"]
    if config.architecture == "DeepseekV3ForCausalLM":
        ignored.append(f"model.layers.{config.num_layers}.*")  # published with one more layer, which drafts tokens
    whole = table.around(rules)
    if quantization != "none":
        whole = _made_smaller(whole, quantization)
    return ShardSpec(tuple(whole), tuple(ignored))


def weight_bytes(
    config: ModelConfig, shard: RankShard, bytes_per_element: float, quantization: Quantization = "none"
) -> int:
    """Bytes of this rank's weights, padding included. `bytes_per_element` may be fractional."""
    return rank_bytes(spec_for(config, quantization), shard, bytes_per_element)


def part_bytes(config: ModelConfig, bytes_per_element: float, quantization: Quantization = "none") -> StageCosts:
    """Bytes of the whole weights of each layer, of the embedding, and of the head with its norm."""
    spec, (whole,) = spec_for(config, quantization), partition(config, ParallelDims())

    def held(stage: int, layers: Span) -> float:
        at = RankCoordinates(stage, 0)
        return rank_bytes(
            spec, replace(whole, coordinates=at, dims=ParallelDims(pp=3), layers=layers), bytes_per_element
        )

    layers = [held(1, Span(layer, layer + 1)) for layer in range(config.num_layers)]
    return StageCosts(layers, held(0, NOTHING), held(2, NOTHING))
