"""One engine process: puts scheduler, executor, engine and service together, and says how the replica does.

Runs with or without Ray; knows no tensors.
"""

from __future__ import annotations

import asyncio
import logging

from argosy.internal.v1 import control_pb2, replica_pb2_grpc
from cluster import rpc
from cluster.clock import Clock, SystemClock
from cluster.launch import EngineAddresses, EngineSpec
from cluster.peers import Role
from cluster.replica.constraints import Constraints
from cluster.replica.engine import Engine
from cluster.replica.executor import Executor
from cluster.replica.grammars import Grammars
from cluster.replica.plan import SchedulerConfig
from cluster.replica.prefix_log import PrefixLog
from cluster.replica.scheduler import Scheduler
from cluster.replica.service import ReplicaService
from cluster.replica.validate import Limits
from cluster.revision import model_revision
from model.config import ModelConfig
from model.parallel.partition import partition

STOP_SECONDS = 5.0
"""How long ranks and routers get to end their connections."""

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
        shards = partition(model, replica.dims, weights=replica.speeds or None)
        self._executor = Executor(replica, shards, clock)
        self._metrics = EngineMetrics(replica.model, replica.replica_id)
        self._figures = Figures(model, shards, replica.dtype, self._metrics)
        self._prefixes = PrefixLog()
        self._prefixes = PrefixLog()
        self._grammars = Grammars(replica.directory, model.vocab_size, model.eos_token_ids)
        self._constraints = Constraints(self._grammars)
        self._engine = Engine(
            epoch=replica.epoch,
            num_stages=replica.dims.pp,
            limits=Limits(vocab_size=model.vocab_size, context_length=replica.context_length),
            scheduler=Scheduler(_scheduler_config(spec), block_observer=self._prefixes),
            constraints=self._constraints,
            prefixes=self._prefixes,
            ranks=self._executor,
            clock=clock,
        )
        self._addresses = EngineAddresses(service="", step_channel="")
        self._loop: asyncio.Task[None] | None = None

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
        self._addresses = EngineAddresses(service=service, step_channel=step_channel)
        logger.info("routers: %s, workers: %s", service, step_channel)
        return self._addresses

    async def status(self) -> bytes:
        """The serialized `ReplicaStatus` of this moment."""
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
        )
        return status.SerializeToString()

    async def stop(self, grace_seconds: float = 30.0) -> None:
        """Finish what runs within `grace_seconds`, tell the ranks to exit, hang up on routers."""
        await self._engine.drain(grace_seconds)
        await self._executor.stop(STOP_SECONDS)
        await self._server.stop(STOP_SECONDS)
        if self._loop:
            self._loop.cancel()
        self._constraints.close()


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
