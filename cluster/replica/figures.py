"""An engine's work added up, and shared out to its ranks: operations, bytes, busy time. Knows plans; sends nothing.

A step adds to a few sums. What each rank's part of them is, is worked out when somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence

from argosy.internal.v1 import control_pb2, step_pb2
from cluster.replica.plan import StepPlan
from cluster.telemetry.engine import EngineMetrics, PhaseFigures, RankFigures
from model.config import ModelConfig
from model.parallel.dims import RankCoordinates
from model.parallel.partition import RankShard
from model.quantization import Quantization
from model.weights.tables import spec_for
from model.work import RankRates, Tally, rank_rates

PREFILL, DECODE = "prefill", "decode"
"""A step with any prompt token is a prefill step: what it takes depends on them first."""
BYTES_PER_ELEMENT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


class Figures:
    """Watches one engine (`cluster.replica.observer.Observer`)."""

    def __init__(
        self,
        config: ModelConfig,
        shards: Sequence[RankShard],
        dtype: str,
        quantization: Quantization = "none",
        metrics: EngineMetrics | None = None,
    ) -> None:
        width, spec = BYTES_PER_ELEMENT[dtype], spec_for(config, quantization)
        self._rates: dict[RankCoordinates, RankRates] = {
            shard.coordinates: rank_rates(config, spec, shard, width) for shard in shards
        }
        self._tallies = {PREFILL: Tally.of(config), DECODE: Tally.of(config)}
        self._metrics = metrics
        self._active_since: float | None = None
        self.active_seconds = 0.0
        """Time with a step in flight."""

    def request_started(self, queued_seconds: float) -> None:
        """See `Observer`."""
        if self._metrics is not None:
            self._metrics.queued(queued_seconds)

    def step_sent(self, now: float) -> None:
        """See `Observer`."""
        if self._active_since is None:
            self._active_since = now

    def step_done(self, now: float, plan: StepPlan, seconds: float, *, in_flight: int) -> None:
        """See `Observer`."""
        if self._active_since is not None:
            self.active_seconds += now - self._active_since
            self._active_since = now if in_flight else None
        phase = PREFILL if plan.num_prefill_tokens else DECODE
        tally, generated = self._tallies[phase], len(plan.rows)
        if phase is DECODE and tally.windows == (0,):
            tally.add_decodes(plan.num_decode_tokens, plan.context_tokens)
        else:
            generated = sum(row.samples for row in plan.rows)
            tally.add([(row.start_position, row.num_tokens) for row in plan.rows], generated)
        if self._metrics is not None:
            tokens = plan.num_prefill_tokens + plan.num_decode_tokens
            self._metrics.step(phase, seconds, len(plan.rows), tokens, generated)

    def rank(self, coordinates: RankCoordinates, told: step_pb2.RankFigures) -> step_pb2.RankFigures:
        """A rank's own figures with the work that its passes did."""
        figures, rates = step_pb2.RankFigures(), self._rates[coordinates]
        figures.CopyFrom(told)
        for phase, message in ((PREFILL, figures.prefill), (DECODE, figures.decode)):
            message.flops = rates.flops(self._tallies[phase])
            message.memory_bytes = rates.memory_bytes(self._tallies[phase])
        return figures


def rank_figures(status: control_pb2.RankStatus) -> RankFigures:
    """For the scrape, from the wire's form."""
    told = status.figures
    return RankFigures(
        stage=status.stage,
        tensor_rank=status.tensor_rank,
        phases={PREFILL: _phase(told.prefill), DECODE: _phase(told.decode)},
        collective_seconds=told.collective_seconds,
        receive_seconds=told.receive_seconds,
        peak_flops=told.peak_flops,
        peak_bytes=told.peak_bytes,
    )


def _phase(told: step_pb2.PhaseFigures) -> PhaseFigures:
    return PhaseFigures(told.steps, told.busy_seconds, told.flops, told.memory_bytes)
