"""One engine process: puts scheduler, executor, engine and service together, and says how the replica does.

Runs with or without Ray; knows no tensors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from argosy.internal.v1 import control_pb2, replica_pb2_grpc
from cluster import rpc
from cluster.clock import Clock, SystemClock
from cluster.cut import cut_replica
from cluster.launch import EngineAddresses, EngineSpec
from cluster.peers import Role
from cluster.replica.constraints import Constraints
from cluster.replica.engine import Engine
from cluster.replica.executor import Executor
from cluster.replica.figures import Figures, rank_figures
from cluster.replica.grammars import Grammars
from cluster.replica.plan import SchedulerConfig
from cluster.replica.prefix_log import PrefixLog
from cluster.replica.scheduler import Scheduler
from cluster.replica.service import ReplicaService
from cluster.replica.traces import RequestTraces
from cluster.replica.validate import Limits
from cluster.revision import model_revision
from cluster.telemetry.engine import EngineFigures, EngineMetrics
from cluster.telemetry.exporter import exported, reachable
from cluster.telemetry.tracing import Attributes, open_tracer
from model.config import ModelConfig
from model.parallel.dims import RankCoordinates

STOP_SECONDS = 5.0
"""How long ranks and routers get to end their connections."""
SCRAPE_SECONDS = 5.0
"""How long a scrape waits for the engine's loop."""

logger = logging.getLogger(__name__)


class EngineActor:
    """One epoch's engine. It has its process, or at least its event loop, to itself."""

    def __init__(self, spec: EngineSpec, clock: Clock | None = None) -> None:
        """
        Raises:
            FileNotFoundError: the checkpoint has no config.json.
            ValueError: the model cannot be served, or not cut this way.
        """
        replica = spec.replica
        self._spec = spec
        self._clock = clock = clock or SystemClock()
        model = ModelConfig.from_checkpoint(replica.directory)
        self._identity = replica.peers.identity(Role.ENGINE)
        shards = cut_replica(replica, model)
        self._executor = Executor(replica, shards, clock)
        place: Attributes = {
            "argosy.region": replica.region,
            "argosy.replica": replica.replica_id,
            "argosy.epoch": replica.epoch,
        }
        self._tracer = open_tracer(replica.traces, "engine", place)
        self._metrics = EngineMetrics(replica.model, replica.replica_id)
        self._figures = Figures(model, shards, replica.dtype, replica.quantization, self._metrics)
        self._prefixes = PrefixLog()
        self._grammars = Grammars(replica.directory, model.vocab_size, model.eos_token_ids)
        self._constraints = Constraints(self._grammars)
        self._scheduler = Scheduler(_scheduler_config(spec), block_observer=self._prefixes)
        self._engine = Engine(
            epoch=replica.epoch,
            num_stages=replica.dims.pp,
            limits=Limits(vocab_size=model.vocab_size, context_length=replica.context_length),
            scheduler=self._scheduler,
            constraints=self._constraints,
            prefixes=self._prefixes,
            ranks=self._executor,
            clock=clock,
            num_ranks=replica.dims.world_size,
            observer=self._figures,
            traces=RequestTraces(self._tracer, replica.traces.step_every),
        )
        self._addresses = EngineAddresses(service="", step_channel="")
        self._loop: asyncio.Task[None] | None = None
        self._exports = contextlib.ExitStack()

    async def start(self) -> EngineAddresses:
        """Listen for workers and routers; the epoch begins when every rank is ready."""
        replica = self._spec.replica
        step_channel = await self._executor.start(self._spec.host, self._engine)
        self._server = rpc.private_server(self._identity)
        servicer = ReplicaService(self._engine, replica)
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        service = rpc.private_listen(self._server, f"{self._spec.host}:0", "peers", self._identity)
        await self._server.start()
        self._loop = asyncio.create_task(self._engine.run())
        self._grammars.warm_up()
        metrics = self._export(asyncio.get_running_loop())
        self._addresses = EngineAddresses(service=service, step_channel=step_channel, metrics=metrics)
        logger.info("routers: %s, workers: %s, metrics: %s", service, step_channel, metrics or "off")
        return self._addresses

    async def status(self) -> bytes:
        """The serialized `ReplicaStatus` of this moment."""
        return self._status().SerializeToString()

    async def stop(self, grace_seconds: float = 30.0) -> None:
        """Finish what runs within `grace_seconds`, tell the ranks to exit, hang up on routers."""
        await self._engine.drain(grace_seconds)
        await self._executor.stop(STOP_SECONDS)
        await self._server.stop(STOP_SECONDS)
        if self._loop:
            self._loop.cancel()
        await asyncio.to_thread(self._exports.close)
        await asyncio.to_thread(self._tracer.close)
        self._constraints.close()

    def _status(self) -> control_pb2.ReplicaStatus:
        replica, engine = self._spec.replica, self._engine
        loading = engine.state == control_pb2.REPLICA_STATE_LOADING
        status = control_pb2.ReplicaStatus(
            replica_id=replica.replica_id,
            model=replica.model,
            address=self._addresses.service,
            epoch=replica.epoch,
            state=engine.state,
            reason=self._executor.missing_ranks() if loading else engine.reason,
            ranks=self._executor.rank_statuses(),
            load=engine.load(),
            coefficients=engine.costs.coefficients(),
            prefixes=self._prefixes.summary(self._clock.monotonic()),
            metrics_address=self._addresses.metrics,
            active_seconds=self._figures.active_seconds,
            delivered_tokens=engine.delivered_tokens,
        )
        for rank in status.ranks:
            figures = self._figures.rank(RankCoordinates(rank.stage, rank.tensor_rank), rank.figures)
            rank.figures.CopyFrom(figures)
        return status

    def _export(self, loop: asyncio.AbstractEventLoop) -> str:
        """Serve the metrics; host:port that others can reach, empty if they are off."""

        async def figures() -> EngineFigures:
            return self._engine_figures()

        # Everything that is counted belongs to the loop; the scraper's thread waits for its turn there.
        self._metrics.watch(lambda: asyncio.run_coroutine_threadsafe(figures(), loop).result(SCRAPE_SECONDS))
        listen = self._spec.replica.metrics.engines
        address = self._exports.enter_context(exported(self._metrics.registry, listen, "metrics.engines"))
        return reachable(address, self._spec.host)

    def _engine_figures(self) -> EngineFigures:
        status, scheduler = self._status(), self._scheduler
        load, fitted = status.load, status.coefficients
        return EngineFigures(
            epoch=status.epoch,
            running=load.running,
            waiting=load.waiting,
            pending_prefill_tokens=load.pending_prefill_tokens,
            used_blocks=load.used_blocks,
            total_blocks=load.total_blocks,
            missed_tokens=load.missed_tokens,
            hit_tokens=load.hit_tokens,
            evictions=scheduler.blocks.num_evicted,
            preemptions=scheduler.num_preempted,
            active_seconds=status.active_seconds,
            coefficients={field.name: getattr(fitted, field.name) for field in fitted.DESCRIPTOR.fields},
            ranks=[rank_figures(rank) for rank in status.ranks],
        )


def _scheduler_config(spec: EngineSpec) -> SchedulerConfig:
    replica, engine = spec.replica, spec.replica.engine
    return SchedulerConfig(
        max_batch_tokens=engine.max_batch_tokens,
        max_sequences=engine.max_sequences,
        block_size=engine.block_size,
        num_blocks=replica.num_blocks,
        context_length=replica.context_length,
        num_lanes=replica.dims.pp,
        prefix_cache=engine.prefix_cache,
        model_revision=model_revision(replica.directory),
    )
