"""Wanted replicas against what is observed: which to start, which to stop. Pure: records, observations and a time in.

Each replica is a small machine: pending → starting → ready, and from there → failed → (backoff) → starting, each start
at a new epoch. An operator's order takes it from wherever it is → draining → resting, or → pending to be built again.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from cluster.ids import Epoch, ReplicaId

NEVER_STARTED = Epoch(0)


class Phase(enum.Enum):
    """Where the controller stands with a replica."""

    PENDING = "pending"
    """Not running: never started, or nothing to place it on."""
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    """Torn down; starts again at `Record.retry_at`."""
    DRAINING = "draining"
    """Takes nothing new, finishes what it has, ends."""
    RESTING = "resting"
    """Drained; starts again when the order is taken back."""


class Health(enum.Enum):
    """What was last seen of a replica that runs or is being started."""

    UNPLACED = "unplaced"
    """No node has room for it."""
    LOADING = "loading"
    READY = "ready"
    BROKEN = "broken"
    """A process is gone or said that it cannot go on."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One replica as last seen. `heard_at` is when its engine last answered, monotonic seconds."""

    epoch: Epoch
    health: Health
    heard_at: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What the controller remembers of one replica."""

    replica_id: ReplicaId
    phase: Phase = Phase.PENDING
    epoch: Epoch = NEVER_STARTED
    since: float = 0.0
    """When the phase began."""
    failures: int = 0
    """In a row, without a spell of health between them."""
    retry_at: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """Place and start the replica's processes at this epoch."""

    replica_id: ReplicaId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Stop:
    """End every process of this epoch. Nothing that still carries the epoch is heard afterwards."""

    replica_id: ReplicaId
    epoch: Epoch
    graceful: bool
    grace_seconds: float = 2.0
    """How long what runs may take to finish, if graceful."""


@dataclass(frozen=True, slots=True)
class Drain:
    """An operator's order that a replica ends."""

    grace_seconds: float
    restart: bool
    """Build it again afterwards. Otherwise it rests for as long as there is the order."""


Action = Start | Stop
NO_DRAINS: Mapping[ReplicaId, Drain] = {}


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits, in seconds."""

    start_timeout: float = 600.0
    silence_limit: float = 5.0
    """A ready engine that does not answer for so long is lost."""
    first_backoff: float = 0.5
    longest_backoff: float = 30.0
    healthy_after: float = 60.0
    """A replica that was ready for so long has its failures forgotten."""
    placement_retry: float = 1.0

    def backoff(self, failures: int) -> float:
        """Delay before the next start after `failures` in a row: doubles, bounded."""
        return min(self.longest_backoff, self.first_backoff * 2.0 ** min(failures - 1, 20))


def reconcile(
    wanted: frozenset[ReplicaId],
    records: Mapping[ReplicaId, Record],
    observations: Mapping[ReplicaId, Observation],
    now: float,
    policy: Policy,
    drains: Mapping[ReplicaId, Drain] = NO_DRAINS,
    ended: Collection[ReplicaId] = (),
) -> tuple[dict[ReplicaId, Record], list[Action]]:
    """One round: the records to keep, and what to do.

    Observations of another epoch than the record's are ignored: they come from before a rebuild.

    Args:
        drains: orders in force.
        ended: replicas whose last `Stop` is done.
    """
    kept: dict[ReplicaId, Record] = {}
    actions: list[Action] = []
    for replica_id in sorted(wanted):
        record = records.get(replica_id) or Record(replica_id, since=now)
        seen = observations.get(replica_id)
        fresh = seen if seen is not None and seen.epoch == record.epoch else None
        drain = drains.get(replica_id)
        if drain is not None or record.phase in (Phase.DRAINING, Phase.RESTING):
            kept[replica_id], more = _leave(record, drain, now, replica_id in ended)
        else:
            kept[replica_id], more = _advance(record, fresh, now, policy)
        actions += more
    for replica_id in sorted(records.keys() - wanted):
        record = records[replica_id]
        if record.phase in (Phase.STARTING, Phase.READY):
            actions.append(Stop(replica_id, record.epoch, graceful=True))
    return kept, actions


def _leave(record: Record, drain: Drain | None, now: float, has_ended: bool) -> tuple[Record, list[Action]]:
    """Follow an order, or what is left to do of one that was taken back."""
    rests = drain is not None and not drain.restart
    if record.phase in (Phase.STARTING, Phase.READY):
        assert drain is not None
        draining = replace(record, phase=Phase.DRAINING, since=now, reason="")
        return draining, [Stop(record.replica_id, record.epoch, graceful=True, grace_seconds=drain.grace_seconds)]
    if record.phase is Phase.DRAINING and not has_ended:
        return record, []
    if rests:
        reason = "drained, until it is called back"
        return record if record.phase is Phase.RESTING else replace(
            record, phase=Phase.RESTING, since=now, failures=0, reason=reason
        ), []
    return replace(record, phase=Phase.PENDING, since=now, retry_at=now, reason=""), []


def _advance(record: Record, seen: Observation | None, now: float, policy: Policy) -> tuple[Record, list[Action]]:
    if record.phase in (Phase.PENDING, Phase.FAILED):
        if now < record.retry_at:
            return record, []
        epoch = Epoch(record.epoch + 1)
        # What ended the last epoch stays visible until this one is ready.
        after = f"started again after: {record.reason}" if record.phase is Phase.FAILED else ""
        started = replace(record, phase=Phase.STARTING, epoch=epoch, since=now, reason=after)
        return started, [Start(record.replica_id, epoch)]
    if seen is not None and seen.health is Health.UNPLACED:
        waiting = replace(
            record, phase=Phase.PENDING, since=now, retry_at=now + policy.placement_retry, reason=seen.reason
        )
        return waiting, [Stop(record.replica_id, record.epoch, graceful=False)]
    if trouble := _trouble(record, seen, now, policy):
        return _fail(record, trouble, now, policy)
    if record.phase is Phase.STARTING and seen is not None and seen.health is Health.READY:
        return replace(record, phase=Phase.READY, since=now, reason=""), []
    if record.phase is Phase.READY and record.failures and now - record.since >= policy.healthy_after:
        return replace(record, failures=0), []
    return record, []


def _trouble(record: Record, seen: Observation | None, now: float, policy: Policy) -> str:
    """Why the replica must be rebuilt; empty if it need not."""
    if seen is not None and seen.health is Health.BROKEN:
        return seen.reason or "a process of the replica ended"
    if record.phase is Phase.READY:
        silent = now - max(record.since, seen.heard_at if seen else record.since)
        if silent >= policy.silence_limit:
            return f"the engine has not answered for {silent:.1f} s"
    elif now - record.since >= policy.start_timeout:
        waiting_for = f": {seen.reason}" if seen and seen.reason else ""
        return f"not ready {policy.start_timeout:.0f} s after its start{waiting_for}"
    return ""


def _fail(record: Record, reason: str, now: float, policy: Policy) -> tuple[Record, list[Action]]:
    failures = record.failures + 1
    failed = replace(
        record,
        phase=Phase.FAILED,
        since=now,
        failures=failures,
        retry_at=now + policy.backoff(failures),
        reason=reason,
    )
    return failed, [Stop(record.replica_id, record.epoch, graceful=False)]
