"""The loop that makes a region what its configuration says: observe, reconcile, act, publish.

Decides nothing itself (`reconcile`, `plan` and `placement` do) and starts nothing itself (the backend does).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace

from argosy.internal.v1 import control_pb2
from cluster.clock import Clock
from cluster.config import ArgosyConfig
from cluster.control.backend import Backend, BackendError
from cluster.control.delivered import Delivered
from cluster.control.drain import Drains, Orders
from cluster.control.placement import UnplaceableError
from cluster.control.plan import ReplicaPlan, WantedReplica, plan_replica, wanted_replicas
from cluster.control.progress import READY, ProgressBook
from cluster.control.reconcile import Drain, Health, Observation, Phase, Policy, Record, Start, Stop, reconcile
from cluster.control.report import directory_entry, replica_status
from cluster.control.service import RegionView
from cluster.errors import ConfigurationError
from cluster.ids import Epoch, RegionId, ReplicaId
from cluster.telemetry.controller import ControllerMetrics, ReplicaFigures

logger = logging.getLogger(__name__)

ACTIVE_SECONDS = 0.1
"""Between rounds while something starts or loads move: a router's view is never older."""
IDLE_SECONDS = 0.25
"""Between rounds otherwise."""

_HEALTH = {
    control_pb2.REPLICA_STATE_READY: Health.READY,
    control_pb2.REPLICA_STATE_DRAINING: Health.READY,
    control_pb2.REPLICA_STATE_FAILED: Health.BROKEN,
}


class Controller:
    """One region's controller. All methods run on one event loop."""

    def __init__(
        self,
        config: ArgosyConfig,
        backend: Backend,
        clock: Clock,
        view: RegionView,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        """
        Raises:
            ConfigurationError: a checkpoint cannot be read.
        """
        self._region = RegionId(config.region)
        self._peers = config.peers
        self._backend = backend
        self._clock = clock
        self._view = view
        self._metrics = metrics or ControllerMetrics()
        self._progress = ProgressBook()
        self._config = config
        self._policy = Policy(start_timeout=config.controller.start_timeout_seconds)
        self._wanted = {replica.replica_id: replica for replica in wanted_replicas(config)}
        self._announce()
        self._records: dict[ReplicaId, Record] = {}
        self._seen: dict[ReplicaId, Observation] = {}
        self._told: dict[ReplicaId, control_pb2.ReplicaStatus] = {}
        self._delivered = Delivered()
        self._plans: dict[ReplicaId, ReplicaPlan] = {}
        self._starts: dict[ReplicaId, asyncio.Task[None]] = {}
        self._stops: dict[ReplicaId, asyncio.Task[None]] = {}
        self._polls: dict[ReplicaId, asyncio.Task[None]] = {}
        self._drains = Drains()
        self.orders = Orders(self._drains, view, clock, lambda: self._records)
        """For operators who want something to leave."""

    async def adopt(self) -> None:
        """Take over what an earlier controller left running; it is judged like anything else from then on."""
        now = self._clock.monotonic()
        for found in sorted(await self._backend.running(), key=lambda found: found.epoch):
            older = self._records.get(found.replica_id)
            if older is not None:
                await self._backend.stop(older.replica_id, older.epoch, graceful=False)
            self._records[found.replica_id] = Record(found.replica_id, Phase.STARTING, found.epoch, since=now)
            logger.info("adopted %s at epoch %d", found.replica_id, found.epoch)
        for replica_id in self._wanted.keys() - self._records.keys():
            epoch = await self._backend.last_epoch(replica_id)
            self._records[replica_id] = Record(replica_id, epoch=epoch, since=now)

    async def run(self) -> None:
        """Rounds for ever; ends by cancellation."""
        while True:
            active = self.round()
            await self._clock.sleep(ACTIVE_SECONDS if active else IDLE_SECONDS)

    def round(self) -> bool:
        """Reconcile once, publish, and ask every engine how it does. True if something is moving."""
        now = self._clock.monotonic()
        before = self._records
        ended = {replica_id for replica_id, stop in self._stops.items() if stop.done()}
        self._records, actions = reconcile(
            frozenset(self._wanted), before, self._seen, now, self._policy, self._drains.replicas, ended
        )
        self._drains.followed(before, self._records)
        for action in actions:
            if isinstance(action, Start):
                self._begin_start(action)
            else:
                self._begin_stop(action)
        self._log_changes(before)
        directory = self._view.directory
        self._publish()
        self._poll()
        return self._view.directory is not directory or any(
            record.phase is not Phase.READY for record in self._records.values()
        )

    @property
    def wanted(self) -> dict[ReplicaId, WantedReplica]:
        """What the region shall run, with what was decided where the configuration left it open."""
        return dict(self._wanted)

    def record(self, replica_id: ReplicaId) -> Record | None:
        """How a replica stands."""
        return self._records.get(replica_id)

    async def want(self, wanted: WantedReplica) -> None:
        """From now on want this replica, in this shape; one that runs is not disturbed."""
        replica_id = wanted.replica_id
        if replica_id not in self._records:
            epoch = await self._backend.last_epoch(replica_id)
            self._records[replica_id] = Record(replica_id, epoch=epoch, since=self._clock.monotonic())
        self._wanted[replica_id] = wanted
        self._announce()

    def forget(self, replica_id: ReplicaId) -> None:
        """From now on do not want it; whatever still runs is ended."""
        self._wanted.pop(replica_id, None)
        self._drains.replicas.pop(replica_id, None)
        self._announce()

    def order(self, replica_id: ReplicaId, drain: Drain) -> None:
        """Let it leave in order."""
        self._drains.replicas[replica_id] = drain

    def _announce(self) -> None:
        """Tell routers which models there are to be."""
        self._num_ranks = sum(replica.dims.world_size for replica in self._wanted.values())
        self._view.announce({replica.section.name: replica for replica in self._wanted.values()}.values())

    async def shut_down(self) -> None:
        """Stop wanting anything, and wait until every process has ended."""
        self._wanted = {}
        self.round()
        await asyncio.gather(*self._stops.values(), return_exceptions=True)

    def _begin_start(self, action: Start) -> None:
        self._seen.pop(action.replica_id, None)
        self._told.pop(action.replica_id, None)
        previous = self._stops.pop(action.replica_id, None)
        self._starts[action.replica_id] = asyncio.create_task(self._start(action, previous))

    async def _start(self, action: Start, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        replica_id, epoch = action.replica_id, action.epoch
        try:
            nodes = list(filter(self._drains.allows, await self._backend.inventory()))
            plan = plan_replica(self._wanted[replica_id], nodes, self._num_ranks)
            self._plans[replica_id] = plan
            self._wanted[replica_id] = _settled(self._wanted[replica_id], plan)
            spec = plan.spec(self._region, epoch, secrets.token_bytes(32), self._peers)
            config = self._config
            await self._backend.start(plan, replace(spec, metrics=config.metrics, traces=config.traces, log=config.log))
        except UnplaceableError as error:
            self._observe(replica_id, epoch, Health.UNPLACED, str(error))
        except (BackendError, ConfigurationError) as error:
            self._observe(replica_id, epoch, Health.BROKEN, str(error))
        except Exception as error:
            logger.exception("starting %s failed", replica_id)
            self._observe(replica_id, epoch, Health.BROKEN, f"start failed: {type(error).__name__}: {error}")

    def _begin_stop(self, action: Stop) -> None:
        for tasks in (self._starts, self._polls):
            if (task := tasks.pop(action.replica_id, None)) is not None:
                task.cancel()
        self._told.pop(action.replica_id, None)
        self._stops[action.replica_id] = asyncio.create_task(
            self._backend.stop(
                action.replica_id, action.epoch, graceful=action.graceful, grace_seconds=action.grace_seconds
            )
        )

    def _poll(self) -> None:
        for record in self._records.values():
            if record.phase not in (Phase.STARTING, Phase.READY):
                continue
            starting = self._starts.get(record.replica_id)
            polling = self._polls.get(record.replica_id)
            if (starting is None or starting.done()) and (polling is None or polling.done()):
                if (seen := self._seen.get(record.replica_id)) and seen.health in (Health.BROKEN, Health.UNPLACED):
                    continue
                self._polls[record.replica_id] = asyncio.create_task(self._ask(record.replica_id, record.epoch))

    async def _ask(self, replica_id: ReplicaId, epoch: Epoch) -> None:
        try:
            told = await self._backend.status(replica_id, epoch)
        except BackendError as error:
            self._observe(replica_id, epoch, Health.BROKEN, str(error))
            return
        if told.epoch == epoch:
            self._told[replica_id] = told
            self._delivered.hear(replica_id, epoch, told.delivered_tokens)
            self._observe(replica_id, epoch, _HEALTH.get(told.state, Health.LOADING), told.reason)

    def _observe(self, replica_id: ReplicaId, epoch: Epoch, health: Health, reason: str) -> None:
        self._seen[replica_id] = Observation(epoch, health, self._clock.monotonic(), reason)

    def _publish(self) -> None:
        statuses = [
            replica_status(record, self._wanted[replica_id], self._plans.get(replica_id), self._told.get(replica_id))
            for replica_id, record in self._records.items()
        ]
        for status in statuses:
            status.delivered_tokens, status.lost_epochs = self._delivered.total(ReplicaId(status.replica_id))
        now = self._clock.monotonic()
        self._view.publish(
            statuses,
            [directory_entry(status) for status in statuses if _takes_requests(status)],
            [self._progress.progress(status, self._records[ReplicaId(status.replica_id)], now) for status in statuses],
        )
        self._metrics.observe(map(replica_figures, statuses))

    def _count(self, old: Record | None, record: Record) -> None:
        model = self._wanted[record.replica_id].section.name
        if record.phase is Phase.STARTING:
            self._metrics.building(model, record.replica_id)
        elif record.phase is Phase.FAILED:
            self._metrics.failed(model, record.replica_id)
        elif record.phase is Phase.READY and old is not None:
            self._metrics.ready(model, record.since - old.since)

    def _log_changes(self, before: dict[ReplicaId, Record]) -> None:
        for replica_id, record in self._records.items():
            old = before.get(replica_id)
            if old is None or old.phase is not record.phase:
                level = logging.WARNING if record.phase is Phase.FAILED else logging.INFO
                self._count(old, record)
                reason = f": {record.reason}" if record.reason else ""
                logger.log(level, "%s epoch %d is %s%s", replica_id, record.epoch, record.phase.value, reason)


def replica_figures(status: control_pb2.ReplicaStatus) -> ReplicaFigures:
    """What is exported of a replica."""
    state = control_pb2.ReplicaState.Name(status.state).removeprefix("REPLICA_STATE_").lower()
    ready = sum(rank.phase == READY for rank in status.ranks)
    return ReplicaFigures(status.model, status.replica_id, state, len(status.ranks), ready)


def _settled(wanted: WantedReplica, plan: ReplicaPlan) -> WantedReplica:
    """A device chosen once stays chosen: a replica that lost its GPUs waits for them, it does not move to CPUs."""
    return replace(wanted, section=wanted.section.model_copy(update={"device": plan.device}))


def _takes_requests(status: control_pb2.ReplicaStatus) -> bool:
    return status.state == control_pb2.REPLICA_STATE_READY and bool(status.address)
