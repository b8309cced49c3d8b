"""A trace made ready for a fleet: the names that replicas will give its prompts' blocks. Knows no time.

Routers and replicas name blocks by hash; a trace is played many times, and its names do not change.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.prefix import BlockKey, block_keys
from cluster.replica.plan import SchedulerConfig
from cluster.simulate.traces import Trace


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace and, for each of its requests, the keys of its prompt's full blocks."""

    trace: Trace
    keys: tuple[tuple[BlockKey, ...], ...]

    @classmethod
    def of(cls, trace: Trace, config: SchedulerConfig) -> Workload:
        """Name the blocks as replicas of this configuration do."""
        return cls(
            trace,
            tuple(
                tuple(block_keys(b"", config.model_revision, request.prompt(), config.block_size))
                for request in trace.requests
            ),
        )
