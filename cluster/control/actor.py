"""The controller's process: the reconcile loop beside its gRPC server. Knows how to wire them, nothing of replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import grpc.aio

from argosy.internal.v1 import control_pb2_grpc
from cluster.clock import SystemClock
from cluster.config import ArgosyConfig, KubernetesDiscovery
from cluster.control.applying import Applying, with_models_of
from cluster.control.controller import Controller
from cluster.control.machines import Machines
from cluster.control.ray_backend import RayBackend
from cluster.control.service import Control, Directory, RegionView
from cluster.logs import configure_logging
from cluster.peers import Role
from cluster.rpc import private_listen, private_server
from cluster.telemetry.controller import ControllerMetrics
from cluster.telemetry.exporter import exported, reachable

logger = logging.getLogger(__name__)


class ControllerActor:
    """A region's controller, run by `cluster.worker.launcher.RoleActor`."""

    def __init__(self, config: ArgosyConfig) -> None:
        self._config = config
        self._view = RegionView(config.region)
        self._server: grpc.aio.Server | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._controller: Controller | None = None
        self._machines: Machines | None = None
        self._discovery: asyncio.Task[None] | None = None
        self._exports = contextlib.ExitStack()
        self._metrics: str | None = None

    async def start(self) -> str:
        """Adopt what runs, then serve and reconcile in the background.

        Returns:
            host:port of the directory and control services.

        Raises:
            ConfigurationError: a checkpoint cannot be read or the address cannot be bound.
        """
        configure_logging(self._config.log, role="controller", region=self._config.region)
        metrics = ControllerMetrics()
        backend = RayBackend(self._config.ray, lambda host: self._machines.labels(host) if self._machines else {})
        if (applied := await backend.recall()) is not None:
            self._config = with_models_of(self._config, applied)
        self._controller = Controller(self._config, backend, SystemClock(), self._view, metrics)
        identity = self._config.peers.identity(Role.CONTROLLER)
        self._server = private_server(identity)
        control_pb2_grpc.add_DirectoryServiceServicer_to_server(Directory(self._view), self._server)  # type: ignore[no-untyped-call]
        applying = Applying(self._config, self._controller, SystemClock(), backend.remember)
        control = Control(self._view, self.stop, self._controller.orders.drain, applying.apply)
        control_pb2_grpc.add_ControlServiceServicer_to_server(control, self._server)  # type: ignore[no-untyped-call]
        address = private_listen(self._server, self._config.controller.listen, "controller.listen", identity)
        if self._config.discovery.kubernetes is not None:
            self._discovery = self._discover(self._config.discovery.kubernetes, self._controller)
        await self._controller.adopt()
        await self._server.start()
        self._loop_task = asyncio.create_task(self._controller.run())
        listen = self._config.metrics.controller
        self._metrics = self._exports.enter_context(
            exported(metrics.registry, listen, "metrics.controller", self._targets)
        )
        logger.info("metrics: %s", self._metrics or "off")
        return address

    async def status(self) -> bytes:
        """The serialized `GetStatusResponse`."""
        return self._view.status.SerializeToString()

    async def stop(self) -> None:
        """End every replica. The process and its server stay, so that the caller gets its answer."""
        for task in (self._loop_task, self._discovery):
            if task is not None:
                task.cancel()
        self._loop_task = None
        if self._controller is not None:
            await asyncio.to_thread(self._exports.close)
            await self._controller.shut_down()

    def _discover(self, config: KubernetesDiscovery, controller: Controller) -> asyncio.Task[None]:
        """Follow pods and nodes. Whoever does not ask for it needs no client library."""
        from cluster.discovery.account import Account
        from cluster.discovery.kubernetes import follow_machines

        def order(host: str, leave: bool) -> None:
            if leave:
                controller.orders.leave(host, config.drain_seconds)
            else:
                controller.orders.use_again(host)

        self._machines = Machines(config, order)
        return asyncio.create_task(follow_machines(Account.of_this_pod(), SystemClock(), self._machines.take))

    def _targets(self) -> list[dict[str, Any]]:
        """Every port of the region that Prometheus can scrape. The status is replaced as a whole, so any thread may
        read it."""
        status = self._view.status
        host = socket.gethostbyname(socket.gethostname())
        own = reachable(self._metrics, host)
        found: list[dict[str, Any]] = [{"targets": [own], "labels": {"job": "argosy-controller"}}]
        routers = sorted(self._view.router_metrics.copy().values())
        found += [{"targets": [router], "labels": {"job": "argosy-router"}} for router in routers]
        found += [
            {"targets": [replica.metrics_address], "labels": {"job": "argosy-engine", "replica_id": replica.replica_id}}
            for replica in status.replicas
            if replica.metrics_address
        ]
        return [{**one, "labels": {**one["labels"], "region": status.region}} for one in found]
