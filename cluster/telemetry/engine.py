"""What an engine counts for itself and for its ranks. Knows numbers a step; no plans, no requests, no sockets.

Steps are observed as they end. What changes between them (load, coefficients, the ranks' own figures) is read when
somebody scrapes, so it costs a step nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cluster.telemetry import catalogue as names
from cluster.telemetry.catalogue import Metric
from cluster.telemetry.instruments import Instruments

PHASES = ("prefill", "decode")
Family = CounterMetricFamily | GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """What one rank did in one phase, since start."""

    steps: int = 0
    busy_seconds: float = 0.0
    flops: float = 0.0
    memory_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class RankFigures:
    """One rank since its start."""

    stage: int
    tensor_rank: int
    phases: Mapping[str, PhaseFigures] = field(default_factory=dict)
    collective_seconds: float = 0.0
    receive_seconds: float = 0.0
    peak_flops: float = 0.0
    """A second; 0 if it was not measured."""
    peak_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """The engine at the moment of a scrape. Counters count since start."""

    epoch: int = 0
    running: int = 0
    waiting: int = 0
    pending_prefill_tokens: int = 0
    used_blocks: int = 0
    total_blocks: int = 0
    missed_tokens: int = 0
    hit_tokens: int = 0
    evictions: int = 0
    preemptions: int = 0
    active_seconds: float = 0.0
    coefficients: Mapping[str, float] = field(default_factory=dict)
    ranks: Sequence[RankFigures] = ()


class EngineMetrics:
    """One engine's instruments."""

    def __init__(self, model: str, replica: str, registry: CollectorRegistry | None = None) -> None:
        make = Instruments(registry or CollectorRegistry(), {"model": model, "replica": replica})
        self.registry = make.registry
        self._labels = (model, replica)
        step_time = make.histogram(names.STEP_TIME)
        sequences, tokens = make.histogram(names.BATCH_SEQUENCES), make.histogram(names.BATCH_TOKENS)
        # Children are looked up once: a lookup costs more than the observation.
        self._step_time = {phase: make.bind(step_time, phase=phase) for phase in PHASES}
        self._sequences = {phase: make.bind(sequences, phase=phase) for phase in PHASES}
        self._tokens = {phase: make.bind(tokens, phase=phase) for phase in PHASES}
        self._generated = make.bind(make.counter(names.GENERATED_TOKENS))
        self._queue = make.bind(make.histogram(names.ENGINE_QUEUE))

    def watch(self, figures: Callable[[], EngineFigures]) -> None:
        """Read `figures` at every scrape, on the scraper's thread."""
        self.registry.register(_AtScrape(figures, self._labels))

    def step(self, phase: str, seconds: float, sequences: int, tokens: int, generated: int) -> None:
        """A step ended."""
        self._step_time[phase].observe(seconds)
        self._sequences[phase].observe(sequences)
        self._tokens[phase].observe(tokens)
        self._generated.inc(generated)

    def queued(self, seconds: float) -> None:
        """A request entered its first step."""
        self._queue.observe(seconds)


class _AtScrape(Collector):
    """Families made from the figures of the moment."""

    def __init__(self, figures: Callable[[], EngineFigures], labels: tuple[str, str]) -> None:
        self._figures = figures
        self._labels = labels

    def collect(self) -> Iterator[Family]:
        now = self._figures()
        occupancy = now.used_blocks / now.total_blocks if now.total_blocks else 0.0
        values: list[tuple[Metric, float]] = [
            (names.EPOCH, now.epoch),
            (names.RUNNING, now.running),
            (names.WAITING, now.waiting),
            (names.PENDING_TOKENS, now.pending_prefill_tokens),
            (names.KV_USED, now.used_blocks),
            (names.KV_TOTAL, now.total_blocks),
            (names.MISSED_TOKENS, now.missed_tokens),
            (names.HIT_TOKENS, now.hit_tokens),
            (names.KV_EVICTIONS, now.evictions),
            (names.PREEMPTIONS, now.preemptions),
            (names.ACTIVE_TIME, now.active_seconds),
            (names.VLLM_RUNNING, now.running),
            (names.VLLM_WAITING, now.waiting),
            (names.VLLM_KV, occupancy),
        ]
        for metric, value in values:
            yield self._family(metric, [((), value)])
        yield self._family(names.COEFFICIENT, [((name,), value) for name, value in now.coefficients.items()])
        yield from self._of_ranks(now.ranks)

    def describe(self) -> Iterable[Family]:
        """Nothing beforehand: registering must not read figures."""
        return ()

    def _of_ranks(self, ranks: Sequence[RankFigures]) -> Iterator[Family]:
        places = [(str(rank.stage), str(rank.tensor_rank)) for rank in ranks]
        by_phase = [
            ((*place, phase), figures)
            for place, rank in zip(places, ranks, strict=True)
            for phase, figures in rank.phases.items()
        ]
        yield self._family(names.RANK_STEPS, [(at, figures.steps) for at, figures in by_phase])
        yield self._family(names.RANK_BUSY, [(at, figures.busy_seconds) for at, figures in by_phase])
        yield self._family(names.RANK_FLOPS, [(at, figures.flops) for at, figures in by_phase])
        yield self._family(names.RANK_BYTES, [(at, figures.memory_bytes) for at, figures in by_phase])
        paired = list(zip(places, ranks, strict=True))
        yield self._family(names.RANK_COLLECTIVE, [(at, rank.collective_seconds) for at, rank in paired])
        yield self._family(names.RANK_RECEIVE, [(at, rank.receive_seconds) for at, rank in paired])
        measured = [(at, rank) for at, rank in paired if rank.peak_flops]
        yield self._family(names.RANK_PEAK_FLOPS, [(at, rank.peak_flops) for at, rank in measured])
        yield self._family(names.RANK_PEAK_BYTES, [(at, rank.peak_bytes) for at, rank in measured])

    def _family(self, metric: Metric, samples: Sequence[tuple[tuple[str, ...], float]]) -> Family:
        make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family: Family = make(metric.name, metric.help, labels=metric.labels)
        for labels, value in samples:
            family.add_metric((*self._labels, *labels), value)
        return family
