"""How long a step takes on a kind of GPU, from a model's configuration alone. A roofline with fitted efficiencies.

A stage reads its weights or multiplies by them, whichever takes longer; then come attention, keys and values, sums
over ranks, what is left between the products, and a constant a layer and a sequence. Efficiencies were fitted to 465
step times of a 70-billion-parameter Llama on H100 and H200 (cluster/simulate/data, themselves a vendor's estimates):
`benchmarks/bench_step_model.py` prints the errors. Elsewhere they are an extrapolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.control.capacity.devices import DeviceKind
from model.config import ModelConfig
from model.parallel.partition import RankShard, active_layer_elements

# Shares of the data sheet's figures that are reached.
_BANDWIDTH, _KV_BANDWIDTH, _LINK = 0.909, 0.904, 0.909
_BF16, _FP8, _ATTENTION, _HEAD = 0.834, 0.577, 0.695, 0.667
_HIDDEN_PASSES = 24.2
"""Times that a layer reads or writes something of the size of the hidden states, between its products."""
_LAYER_SECONDS, _SEQUENCE_SECONDS = 60.2e-6, 7.8e-6
_SHARPNESS = 4
"""How abruptly reading weights gives way to multiplying as what a step is bound by."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes an element."""

    weights: float = 2.0
    kv: float = 2.0
    is_fp8: bool = False
    """Products run in 8-bit arithmetic."""

    @classmethod
    def of(cls, config: ModelConfig) -> Precision:
        """As the checkpoint stores weights; bf16 where it does not say."""
        method = config.quantisation.method if config.quantisation else None
        return {"fp8": cls(1.0, 2.0, True), "mxfp4": cls(0.56, 2.0)}.get(method or "", cls())


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes."""

    tokens: int
    """Tokens, prompt and decode together."""
    sequences: int
    """Sequences that sample."""
    attended_pairs: float = 0.0
    """Pairs of a prompt token and a key that it sees."""
    decode_context: int = 0
    """Keys that decoding sequences read."""


def prefill_work(tokens: int, cached: int = 0) -> StepWork:
    """A prompt's next `tokens` tokens after `cached` ones."""
    return StepWork(tokens, 1, attended_pairs=tokens * (cached + tokens / 2))


def decode_work(sequences: int, context: int) -> StepWork:
    """One token of each sequence, each with that many tokens before it."""
    return StepWork(sequences, sequences, decode_context=sequences * context)


def stage_seconds(
    config: ModelConfig, shard: RankShard, device: DeviceKind, precision: Precision, work: StepWork
) -> float:
    """Seconds that one stage, whose ranks are alike, takes for a step."""
    tp, layers = shard.dims.tp, shard.layers.size
    active = sum(active_layer_elements(config, layer) for layer in range(shard.layers.start, shard.layers.end)) / tp
    read = sum(_read_elements(config, layer, work.tokens) for layer in range(shard.layers.start, shard.layers.end)) / tp
    head = config.vocab_size * config.hidden_size / tp if shard.is_last_stage else 0.0
    flops = device.fp8_flops * _FP8 if precision.is_fp8 else device.bf16_flops * _BF16
    reading = (read * precision.weights + 2 * head) / (device.memory_bandwidth * _BANDWIDTH)
    multiplying = 2 * active * work.tokens / flops
    products = math.pow(reading**_SHARPNESS + multiplying**_SHARPNESS, 1 / _SHARPNESS)
    logits = 2 * head * work.sequences / (device.bf16_flops * _HEAD)
    hidden_bytes = work.tokens * config.hidden_size * 2
    sums = 2 * layers * hidden_bytes * 2 * (tp - 1) / tp / (device.link_bandwidth * _LINK)
    between = _HIDDEN_PASSES * layers * hidden_bytes / device.memory_bandwidth
    constant = _LAYER_SECONDS * layers + _SEQUENCE_SECONDS * work.sequences
    return products + logits + _attention(config, shard, device, precision, work) + sums + between + constant


def hand_over_seconds(config: ModelConfig, device: DeviceKind, tokens: int, tp: int) -> float:
    """Seconds to hand hidden states to the next stage, on another node."""
    return tokens * config.hidden_size * 2 / (device.network_bandwidth * tp) + 20e-6


def kv_token_bytes(config: ModelConfig, shard: RankShard, precision: Precision) -> float:
    """Bytes that one token's keys and values take on a rank; a latent is kept whole by every rank."""
    if config.latent is not None:
        elements = config.latent.cached_size
    else:
        elements = 2 * shard.heads.kv_heads.size * config.head_dim
    return elements * shard.layers.size * precision.kv


def _attention(
    config: ModelConfig, shard: RankShard, device: DeviceKind, precision: Precision, work: StepWork
) -> float:
    """Scores and weighted values of prompts, and reading keys and values for decoding, over layers with windows."""
    pair_flops = 4 * len(shard.heads.slots) * config.head_dim
    if config.latent is not None:
        latent = config.latent
        pair_flops = 2 * len(shard.heads.slots) * (latent.cached_size + latent.rank)
    token_bytes = kv_token_bytes(config, shard, precision) / shard.layers.size
    pairs = keys = 0.0
    for layer in range(shard.layers.start, shard.layers.end):
        window = config.window(layer)
        pairs += min(work.attended_pairs, work.tokens * window) if window else work.attended_pairs
        keys += min(work.decode_context, work.sequences * window) if window else work.decode_context
    computing = pairs * pair_flops / (device.bf16_flops * _ATTENTION)
    return computing + keys * token_bytes / (device.memory_bandwidth * _KV_BANDWIDTH)


def _read_elements(config: ModelConfig, layer: int, tokens: int) -> float:
    """Weights of a layer that a step of so many tokens reads: of the experts, those that at least one token chose."""
    active = active_layer_elements(config, layer)
    experts = config.experts
    if experts is None or not config.is_sparse(layer):
        return float(active)
    size, chosen = 3 * config.hidden_size * experts.intermediate_size, experts.top_k / experts.num_experts
    touched = experts.num_experts * (1 - math.pow(1 - chosen, tokens))
    return active + size * (touched - experts.top_k)
