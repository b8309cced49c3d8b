"""One epoch of one replica as a router knows it: its connection, its load, and what was sent there since it reported.

Turns that into the plain numbers of `choose_replica`. Knows no other replicas and no requests.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from argosy.internal.v1 import control_pb2, replica_pb2
from cluster.protocol import DEAD_AFTER_SECONDS
from cluster.router.attempt import ReplicaAddress
from cluster.router.choose import Candidate, StepCosts
from cluster.router.dispatch import STALL_FACTOR, ReplicaConnection
from cluster.router.prefixes import PrefixIndex

DEFAULT_COSTS = StepCosts(0.02, 1e-3, 1e-8, 0.03, 1e-3, 1e-7)
"""Of a replica that has not told its own: only their proportions matter, and all unknown replicas share them."""
DEFAULT_STALL_SECONDS = 60.0
"""Longest step of a replica that has not told its coefficients."""


@dataclass(slots=True)
class Replica:
    """One epoch of one replica."""

    target: ReplicaAddress
    prefixes: PrefixIndex
    """Of all replicas of the model."""
    slot: int
    """Its own in there."""
    block_size: int
    batch_tokens: int
    load: replica_pb2.Load
    costs: StepCosts | None
    is_listed: bool = True
    """The directory offers it. One that is not finishes what it has."""
    sent_prefill_tokens: int = 0
    sent_choices: int = 0
    summary_version: int = 0
    _connection: ReplicaConnection | None = None
    _task: asyncio.Task[None] | None = None
    _candidate: Candidate | None = None

    def start(self, connection: ReplicaConnection) -> None:
        """Connect, and stay connected until `stop`."""
        self._connection = connection
        self._task = asyncio.create_task(connection.run())

    async def stop(self) -> None:
        """Let it go: what runs there is lost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def connection(self) -> ReplicaConnection:
        assert self._connection is not None
        return self._connection

    @property
    def is_eligible(self) -> bool:
        """A request can be sent now."""
        return self.is_listed and self.connection.is_live

    def list(self, *, is_listed: bool) -> None:
        """Whether the directory offers it."""
        if is_listed != self.is_listed:
            self.is_listed = is_listed
            self.changed()

    def changed(self) -> None:
        """What the choice reads is no longer as it was."""
        self._candidate = None

    def take_report(self, report: replica_pb2.StepReport) -> None:
        """What the replica itself says."""
        if report.HasField("load"):
            self.take_load(report.load)
        if report.HasField("block_events"):
            events = report.block_events
            self.prefixes.hear(self.slot, events.stored, events.evicted, complete=events.complete)

    def take_entry(self, entry: control_pb2.DirectoryEntry) -> None:
        """What its controller says of it."""
        costs = costs_of(entry.coefficients)
        if costs != self.costs:
            self.costs = costs
            self.changed()
        if not self.connection.is_live:
            self.take_load(entry.load)
        if entry.HasField("prefixes") and entry.prefixes.version != self.summary_version:
            self.summary_version = entry.prefixes.version
            self.prefixes.summarise(self.slot, entry.prefixes.level, entry.prefixes.names)

    def take_load(self, load: replica_pb2.Load) -> None:
        """A newer load: it contains what was sent before."""
        self.load = load
        self.sent_prefill_tokens = self.sent_choices = 0
        self.changed()

    def sent(self, prefill_tokens: int, choices: int, names: Sequence[int], now: float) -> None:
        """A request was sent; the next report will contain it.

        Args:
            prefill_tokens: tokens that it must compute.
            names: of the prompt's blocks.
        """
        self.sent_prefill_tokens += prefill_tokens
        self.sent_choices += choices
        self.prefixes.promise(self.slot, names, now)
        self.changed()

    def candidate(self) -> Candidate:
        """What the choice reads: made anew only when something has changed, for a fleet has hundreds."""
        if self._candidate is None:
            self._candidate = self._make_candidate()
        return self._candidate

    def stall_seconds(self) -> float:
        """Longest time that a step of a replica may take that does not predict its steps itself: five full ones."""
        if self.costs is None:
            return DEFAULT_STALL_SECONDS
        costs, load = self.costs, self.load
        prefill = costs.prefill_base + self.batch_tokens * costs.prefill_per_token
        prefill += self.batch_tokens * load.context_tokens * costs.prefill_per_token_context
        decode = costs.decode_base + load.running * costs.decode_per_sequence
        decode += load.context_tokens * costs.decode_per_context_token
        return max(DEAD_AFTER_SECONDS, STALL_FACTOR * (prefill + decode))

    def _make_candidate(self) -> Candidate:
        load = self.load
        return Candidate(
            eligible=self.is_eligible,
            rtt=self.connection.rtt,
            costs=self.costs or DEFAULT_COSTS,
            batch_tokens=self.batch_tokens,
            running=load.running + self.sent_choices,
            context_tokens=load.context_tokens,
            pending_prefill_tokens=load.pending_prefill_tokens + self.sent_prefill_tokens,
            prefill_share=load.prefill_share,
            free_tokens=(load.total_blocks - load.used_blocks) * self.block_size,
            used_tokens=load.used_blocks * self.block_size,
        )


def costs_of(message: control_pb2.StepCoefficients) -> StepCosts | None:
    """None if the replica has none yet, or they are no numbers."""
    values = (
        message.prefill_base,
        message.prefill_per_token,
        message.prefill_per_token_context,
        message.decode_base,
        message.decode_per_sequence,
        message.decode_per_context_token,
    )
    if not any(values) or not all(math.isfinite(value) and value >= 0 for value in values):
        return None
    return StepCosts(*values)
