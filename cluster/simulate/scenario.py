"""What is simulated: regions, replicas, devices, what goes wrong. Values alone; runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.replica.plan import SchedulerConfig
from cluster.router.choose import StepCosts
from cluster.simulate.goodput import Targets
from cluster.simulate.regions import DEFAULT_REGIONS
from cluster.simulate.step_time import H100_FP8_TP4, H100_TP4_KV_TOKENS
from cluster.simulate.traces import TRACE_BLOCK


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet and its misfortunes. Defaults: three regions with four replicas each, nothing wrong."""

    regions: tuple[str, ...] = DEFAULT_REGIONS
    demand: tuple[float, ...] = (55.0, 30.0, 15.0)
    """Weight of each region as home of sessions."""
    replicas_per_region: int = 4
    costs: StepCosts = H100_FP8_TP4
    kv_tokens: int = H100_TP4_KV_TOKENS
    """KV memory of one replica."""
    block_size: int = TRACE_BLOCK
    """Tokens of a KV block: as fine as the trace tells prefixes apart, no finer."""
    max_batch_tokens: int = 2048
    max_sequences: int = 256
    slack_order: bool = False
    """Replicas serve prefills by slack to the first token's target; else first come, first served."""
    targets: Targets = field(default_factory=Targets)
    deadline_seconds: float = 600.0
    """The client gives up; the router's default."""
    report_seconds: float = 0.1
    """Between two load reports of a replica."""
    believed_scale: float = 1.0
    """Policies believe in coefficients wrong by this factor: one replica's too long, the next one's too short."""
    slow_replicas: int = 0
    """So many replicas, spread over the regions, whose devices are slower than anybody believes."""
    slow_factor: float = 1.5
    lost_region: int | None = None
    """This region's replicas and router vanish half-way through the trace."""
    notice_seconds: float = 1.0
    """Until routers know that replicas are gone."""
    lump: bool = True
    """Move quiet stretches on at once; off: plan and complete every step."""

    def scheduler_config(self) -> SchedulerConfig:
        """Of every replica."""
        return SchedulerConfig(
            max_batch_tokens=self.max_batch_tokens,
            max_sequences=self.max_sequences,
            block_size=self.block_size,
            num_blocks=self.kv_tokens // self.block_size,
            context_length=1 << 18,
            prefill_seconds_per_token=self.costs.prefill_per_token,
            prefill_order="slack" if self.slack_order else "arrival",
        )
