"""Which parallelism serves a model best on a fleet, and why not the others. Arithmetic only: touches no device.

Every plan keeps each tensor group inside one link domain. A plan's rate counts both what prompts and what answers take,
at the largest batch whose time per output token stays within the limit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.control.capacity.devices import DeviceKind, LinkDomain, usable_bytes
from cluster.control.capacity.step_model import (
    Precision,
    decode_work,
    hand_over_seconds,
    kv_token_bytes,
    prefill_work,
    stage_seconds,
)
from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from model.parallel.partition import PartitionError, RankShard, StageCosts, StageMemory, partition
from model.weights.tables import part_bytes, weight_bytes

CHUNK_TOKENS = 4096
"""Prompt tokens of a step."""
MOST_SEQUENCES = 256
_MOST_STAGES = 32


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked."""

    prompt_tokens: int
    answer_tokens: int
    most_seconds_per_token: float

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage; bytes are of its fullest rank."""

    domain: LinkDomain
    shard: RankShard
    weight_bytes: float
    activation_bytes: float
    kv_bytes: float
    kv_tokens: int
    imbalance: float
    """The slowest rank's work over the average."""


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """A way to serve, with its predictions."""

    dims: ParallelDims
    replicas: int
    stages: tuple[StagePlan, ...]
    """Of the slowest replica."""
    kv_tokens: int
    batch: int
    """Sequences of a replica at once."""
    ttft_seconds: float
    """Of one prompt on an idle replica."""
    tpot_seconds: float
    """Of a full batch, between prompts."""
    tokens_per_second: float
    """Output tokens of all replicas, prompts' time included."""
    dollars_per_million: float
    """Of output tokens."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A way that was not chosen."""

    dims: ParallelDims
    reason: str
    plan: CapacityPlan | None = None
    """Its predictions, if it would work."""


def choose_plan(
    config: ModelConfig, fleet: Sequence[LinkDomain], workload: Workload
) -> tuple[CapacityPlan | None, list[Rejected]]:
    """The plan with the most tokens a second, and the others: working ones by rate, then those that cannot work."""
    parts = part_bytes(config, 2)
    found = [_evaluate(config, parts, fleet, dims, workload) for dims in _shapes(config, fleet)]
    rejected = [plan for plan in found if isinstance(plan, Rejected)]
    rejected.sort(key=lambda plan: -plan.dims.world_size)
    working = [plan for plan in found if isinstance(plan, CapacityPlan)]
    working.sort(key=lambda plan: (-plan.tokens_per_second, plan.dims.world_size))
    if not working:
        return None, rejected
    best = working[0]
    slower = [Rejected(plan.dims, _why_not(plan, best), plan) for plan in working[1:]]
    return best, slower + rejected


def _why_not(plan: CapacityPlan, best: CapacityPlan) -> str:
    less = 1 - plan.tokens_per_second / best.tokens_per_second
    idle = " (some devices idle)" if plan.replicas * plan.dims.world_size < best.replicas * best.dims.world_size else ""
    return f"{less:.0%} fewer tokens a second{idle}"


def _shapes(config: ModelConfig, fleet: Sequence[LinkDomain]) -> Iterator[ParallelDims]:
    for tp in range(1, max(domain.size for domain in fleet) + 1):
        groups = sum(domain.size // tp for domain in fleet)
        for pp in range(1, min(groups, config.num_layers, _MOST_STAGES) + 1):
            yield ParallelDims(tp, pp)


def tensor_groups(fleet: Sequence[LinkDomain], tp: int) -> list[LinkDomain]:
    """The domain of each group of `tp` devices; fast devices first, neighbours next to each other."""
    ordered = sorted(fleet, key=lambda domain: (-domain.kind.memory_bandwidth, -domain.size))
    return [domain for domain in ordered for _ in range(domain.size // tp)]


def _evaluate(
    config: ModelConfig, parts: StageCosts, fleet: Sequence[LinkDomain], dims: ParallelDims, workload: Workload
) -> CapacityPlan | Rejected:
    groups = tensor_groups(fleet, dims.tp)
    replicas = [tuple(groups[start : start + dims.pp]) for start in range(0, len(groups) - dims.pp + 1, dims.pp)]
    by_kinds = Counter(tuple(domain.kind.name for domain in replica) for replica in replicas)
    examples = {tuple(domain.kind.name for domain in replica): replica for replica in replicas}
    plans: list[CapacityPlan] = []
    for kinds, count in by_kinds.items():
        found = _replica(config, parts, examples[kinds], dims, workload)
        if isinstance(found, Rejected):
            return found
        plans.extend([found] * count)
    slowest = min(plans, key=lambda plan: plan.tokens_per_second)
    rate = sum(plan.tokens_per_second for plan in plans)
    dollars = sum(domain.kind.dollars_per_hour * domain.size for domain in fleet)
    return CapacityPlan(
        dims=slowest.dims,
        replicas=len(plans),
        stages=slowest.stages,
        kv_tokens=slowest.kv_tokens,
        batch=slowest.batch,
        ttft_seconds=max(plan.ttft_seconds for plan in plans),
        tpot_seconds=max(plan.tpot_seconds for plan in plans),
        tokens_per_second=rate,
        dollars_per_million=dollars / 3600 / rate * 1e6,
    )


def _replica(
    config: ModelConfig, parts: StageCosts, domains: Sequence[LinkDomain], dims: ParallelDims, workload: Workload
) -> CapacityPlan | Rejected:
    try:
        shards = _cut(config, parts, domains, dims, workload)
    except PartitionError as error:
        return Rejected(dims, str(error))
    precision = Precision.of(config)
    stages: list[StagePlan] = []
    for index, domain in enumerate(domains):
        stage = _stage(config, shards[index * dims.tp : (index + 1) * dims.tp], domain, precision)
        if stage.kv_bytes <= 0:
            return Rejected(
                dims,
                f"stage {index}: {stage.weight_bytes / 1e9:.0f} GB of weights a rank leave nothing "
                f"of a {domain.kind.name}'s {domain.kind.memory_bytes / 1e9:.0f} GB",
            )
        stages.append(stage)
    kv_tokens = min(stage.kv_tokens for stage in stages)
    most = min(MOST_SEQUENCES * dims.pp, kv_tokens // workload.context)
    if most < 1:
        return Rejected(dims, f"keys and values of {kv_tokens:,} tokens fit, not one sequence of {workload.context:,}")
    kept = _largest_batch(config, stages, precision, workload, most)
    if kept is None:
        one = _seconds_per_token(config, stages, precision, 1, workload)[0]
        limit = workload.most_seconds_per_token
        return Rejected(dims, f"{one * 1e3:.0f} ms a token even alone, the limit is {limit * 1e3:.0f} ms")
    return _predict(config, dims, tuple(stages), precision, workload, kept, kv_tokens)


def _cut(
    config: ModelConfig, parts: StageCosts, domains: Sequence[LinkDomain], dims: ParallelDims, workload: Workload
) -> tuple[RankShard, ...]:
    """By speed, with room for weights and one sequence on every stage if that can be; else by speed alone."""
    speeds = [domain.kind.memory_bandwidth / 1e12 for domain in domains for _ in range(dims.tp)]
    inner = max(config.intermediate_size, config.experts.intermediate_size if config.experts else 0)
    activations = _activation_bytes(config, inner / dims.tp, config.num_heads / dims.tp, config.vocab_size / dims.tp)
    shard = partition(config, ParallelDims())[0]
    sequence = kv_token_bytes(config, shard, Precision.of(config)) / config.num_layers * workload.context
    assert not isinstance(parts.layer, float)
    layers = [layer + sequence for layer in parts.layer]
    room = [dims.tp * (usable_bytes(domain.kind) - activations) for domain in domains]
    memory = StageMemory(StageCosts(layers, parts.embedding, parts.head), room)
    try:
        return partition(config, dims, weights=speeds, memory=memory)
    except PartitionError:
        return partition(config, dims, weights=speeds)


def _activation_bytes(config: ModelConfig, inner: float, heads: float, vocab: float) -> float:
    """Of one rank in its largest step: hidden states, the MLP's inner columns, queries and outputs, then logits."""
    hidden = 2.0 * CHUNK_TOKENS * (6 * config.hidden_size + 3 * inner + 2 * heads * config.head_dim)
    return hidden + 4.0 * MOST_SEQUENCES * vocab


def _stage(config: ModelConfig, shards: Sequence[RankShard], domain: LinkDomain, precision: Precision) -> StagePlan:
    sizes = [weight_bytes(config, shard, 2) for shard in shards]
    fullest = shards[sizes.index(max(sizes))]
    inner = max(fullest.intermediate.size, fullest.experts.intermediate.size)
    vocab = fullest.vocab.size if fullest.is_last_stage else 0
    activations = _activation_bytes(config, inner, len(fullest.heads.slots), vocab)
    room = usable_bytes(domain.kind) - max(sizes) - activations
    tokens = math.floor(room / max(kv_token_bytes(config, shard, precision) for shard in shards)) if room > 0 else 0
    return StagePlan(
        domain, fullest, max(sizes), activations, max(0.0, room), tokens, max(sizes) * len(sizes) / sum(sizes)
    )


def _seconds_per_token(
    config: ModelConfig, stages: Sequence[StagePlan], precision: Precision, batch: int, workload: Workload
) -> tuple[float, float]:
    """(time between two tokens of a sequence, time that the slowest stage spends on a lane)."""
    lane = math.ceil(batch / len(stages))
    work = decode_work(lane, workload.prompt_tokens + workload.answer_tokens // 2)
    times = [
        stage.imbalance * stage_seconds(config, stage.shard, stage.domain.kind, precision, work) for stage in stages
    ]
    hops = sum(hand_over_seconds(config, stage.domain.kind, lane, stage.shard.dims.tp) for stage in stages[:-1])
    return max(sum(times) + hops, len(stages) * max(times)), max(times)


def _largest_batch(
    config: ModelConfig, stages: Sequence[StagePlan], precision: Precision, workload: Workload, most: int
) -> int | None:
    """The largest batch within the limit: time grows with the batch, so halve the interval."""

    def fits(batch: int) -> bool:
        return _seconds_per_token(config, stages, precision, batch, workload)[0] <= workload.most_seconds_per_token

    if not fits(1):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _predict(
    config: ModelConfig,
    dims: ParallelDims,
    stages: tuple[StagePlan, ...],
    precision: Precision,
    workload: Workload,
    batch: int,
    kv_tokens: int,
) -> CapacityPlan:
    tpot, lane_seconds = _seconds_per_token(config, stages, precision, batch, workload)
    chunk = min(CHUNK_TOKENS, workload.prompt_tokens)
    starts = range(0, workload.prompt_tokens, chunk)

    def chunk_seconds(stage: StagePlan, start: int) -> float:
        work = prefill_work(min(chunk, workload.prompt_tokens - start), start)
        kind: DeviceKind = stage.domain.kind
        hop = hand_over_seconds(config, kind, work.tokens, dims.tp) if dims.pp > 1 else 0.0
        return stage.imbalance * stage_seconds(config, stage.shard, kind, precision, work) + hop

    slowest = max(sum(chunk_seconds(stage, start) for start in starts) for stage in stages)
    ttft = slowest + sum(chunk_seconds(stage, starts[-1]) for stage in stages) - chunk_seconds(stages[-1], starts[-1])
    lane = math.ceil(batch / dims.pp)
    rate = workload.answer_tokens / (slowest + workload.answer_tokens * lane_seconds / lane)
    return CapacityPlan(dims, 1, stages, kv_tokens, batch, ttft, tpot, rate, math.inf)
