"""A whole region as one object: start it, watch it, end it. Used by `up` and `demo`; shows nothing itself.

The router starts first and warms up while Ray does; then the controller, which starts the replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.cli import ray_session
from cluster.cli.processes import RouterProcess, StopRequest, adopt_orphans, kill_descendants
from cluster.cli.tables import plan_table
from cluster.config import ArgosyConfig
from cluster.control.plan import ReplicaPlan, plan_region, settled
from cluster.errors import ConfigurationError
from cluster.peers import Role
from cluster.rpc import channel, private_channel

GRACE_SECONDS = 3.0
"""For processes to leave in order once nothing runs on them."""
JOINED_NODES_SECONDS = 10.0
"""How long a replica may find no room on a cluster that was just joined."""
INFERENCE = "argosy.v1.InferenceService"
"""Health name under which a router says that some model can be asked."""
_LONGEST_SOCKET_BASE = 30
"""Ray puts Unix sockets, whose paths are limited to 107 bytes, about 75 bytes below its directory."""

_Result = TypeVar("_Result")


class StoppedError(Exception):
    """A signal asked for the end while something was being waited for."""


class Region:
    """Everything that one `up` started."""

    def __init__(self, config: ArgosyConfig, *, with_router: bool = True, keep: bool = False) -> None:
        """
        Args:
            with_router: start a router beside it; without, routers of other machines are pointed at the controller.
            keep: leave controller and replicas running on a Ray cluster that was joined, for the next one to adopt.
        """
        self.config = config
        self._with_router = with_router
        self._keep = keep
        self.stop_request = StopRequest(self._forget_directory)
        self.seconds: dict[str, float] = {}
        """How long each part of the start took."""
        self.directory = Path(_private_directory())
        self._routers: list[RouterProcess] = []
        self._controller: Any = None
        self._runner = asyncio.Runner()
        self._output = contextlib.ExitStack()
        self._status_channel: grpc.aio.Channel | None = None

    def __enter__(self) -> Region:
        self.stop_request.install()
        adopt_orphans()
        # Ray prints its nodes' errors to a driver's stdout and has no switch for it. Consoles made before keep theirs.
        self._output.enter_context(contextlib.redirect_stdout(self._output.enter_context(self.driver_log.open("w"))))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        failed = error is not None and not isinstance(error, StoppedError)
        try:
            self.end(drain_seconds=self.config.router.drain_seconds if error is None else 0.0)
        finally:
            self._output.close()
            if not failed:
                self._forget_directory()

    @property
    def driver_log(self) -> Path:
        return self.directory / "ray-driver.log"

    @property
    def router_log(self) -> Path:
        return self.directory / "router.log"

    def _start_router(self) -> None:
        resolved = self.directory / "argosy.json"
        resolved.write_text(self.config.model_dump_json(indent=2))
        self._routers = [RouterProcess(resolved, self.router_log) for _ in range(self.config.router.processes)]
        for router in self._routers:
            router.start()

    def settle(self, plans: Sequence[ReplicaPlan], console: Console) -> None:
        """Show the plans and hold to what they decided."""
        for plan in plans:
            console.print(plan_table(plan))
        self.config = settled(self.config, plans)

    def start(self, console: Console) -> None:
        """Start the router, Ray and the controller, which starts the replicas; returns before any of those is ready.

        Raises:
            ConfigurationError: the named Ray cluster cannot be joined, or the controller cannot start.
            StoppedError: a signal came.
        """
        local = self.config.ray.address == "local"
        if local:
            self._start_router()
        with self._timed("Ray"), console.status("Starting Ray"):
            ray_session.start_ray(self.config, self.directory)
        # Ray has taken SIGTERM for itself.
        self.stop_request.install()
        self._check_stop()
        self._check_router()
        if not local and self._with_router:
            # Only now are the nodes known, and with them what the router must know.
            self.settle(self._plan_on_joined(), console)
            self._start_router()
        with self._timed("controller"), console.status("Starting the controller"):
            self._controller = ray_session.start_controller(self.config, replace=self._keep)
        self._check_stop()

    @property
    def ray_address(self) -> str:
        """Where another region can join this one's Ray, once that runs."""
        return ray_session.cluster_address()

    def _plan_on_joined(self) -> list[ReplicaPlan]:
        """Plan onto the nodes of the cluster that was joined; what is free on a new one shows a moment later."""
        end = time.monotonic() + JOINED_NODES_SECONDS
        while True:
            nodes = ray_session.joined_nodes()
            for node in nodes:
                self.config.peers.identity(Role.ENGINE).check_exposure(f"{node.host}:0", "peers")
            try:
                return plan_region(self.config, nodes)
            except ConfigurationError:
                if time.monotonic() >= end:
                    raise
            if self.stop_request.wait(0.2):
                raise StoppedError

    def status(self) -> control_pb2.GetStatusResponse | None:
        """What the controller says; None if it does not answer."""
        return self.run(self._ask_status())

    def progress(self) -> control_pb2.WatchProgressResponse | None:
        """How far every replica is, as the controller says; None if it does not answer."""
        return self.run(self._ask_progress())

    def router_serves(self) -> bool:
        """Whether the router says that some model can be asked through it; True if there is none of ours.

        Raises:
            ConfigurationError: its process has ended.
        """
        self._check_router()
        return not self._routers or self.run(self._ask_health())

    def supervise(self) -> list[str]:
        """Restart what has ended and should not have; one line for each."""
        events = []
        for router in self._routers:
            if router.exit_status is not None:
                events.append(f"a router ended ({router.last_words()}); starting it again")
                router.start()
        if self._controller is not None and not ray_session.is_alive(self._controller):
            events.append("the controller ended; starting it again, it adopts what runs")
            self._controller = ray_session.start_controller(self.config, again=True)
        return events

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine to its end.

        Raises:
            StoppedError: a signal came first; the coroutine was cancelled.
        """
        return self._runner.run(self._until_stopped(work))

    def end(self, *, drain_seconds: float) -> None:
        """End everything: the router once its answers are out or the time is up, then replicas, controller and Ray."""
        with contextlib.ExitStack() as steps:
            # Last in, first out; each runs whatever becomes of those before it.
            steps.callback(kill_descendants, grace=0.5)
            steps.callback(ray_session.stop_ray)
            steps.callback(self._close_client)
            if self._controller is not None and not self._keep:
                steps.callback(ray_session.stop_controller, self._controller, GRACE_SECONDS)
            for router in self._routers:
                steps.callback(router.wait, drain_seconds + GRACE_SECONDS)
            for router in self._routers:
                steps.callback(router.ask_to_end)

    def _close_client(self) -> None:
        if self._status_channel is not None:
            self._runner.run(self._status_channel.close())
        self._runner.close()

    async def _until_stopped(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait([task], timeout=0.05)
            if self.stop_request.requested and not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=1.0)
                raise StoppedError
        return task.result()

    async def _ask_status(self) -> control_pb2.GetStatusResponse | None:
        try:
            response: control_pb2.GetStatusResponse = await self._control().GetStatus(
                control_pb2.GetStatusRequest(), timeout=2
            )
        except grpc.aio.AioRpcError:
            await self._hang_up()
            return None
        return response

    async def _ask_progress(self) -> control_pb2.WatchProgressResponse | None:
        call = self._control().WatchProgress(control_pb2.WatchProgressRequest(), timeout=2)
        try:
            response: control_pb2.WatchProgressResponse = await call.read()
        except grpc.aio.AioRpcError:
            await self._hang_up()
            return None
        call.cancel()
        return response

    def _control(self) -> Any:
        if self._status_channel is None:
            identity = self.config.peers.identity(Role.OPERATOR)
            self._status_channel = private_channel(self.config.controller.listen, identity, to=Role.CONTROLLER)
        return control_pb2_grpc.ControlServiceStub(self._status_channel)  # type: ignore[no-untyped-call]

    async def _hang_up(self) -> None:
        """The next question opens a channel with the certificates of then."""
        if self._status_channel is not None:
            await self._status_channel.close()
            self._status_channel = None

    async def _ask_health(self) -> bool:
        async with channel(self.config.router.listen) as router:
            try:
                stub = health_pb2_grpc.HealthStub(router)
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=INFERENCE), timeout=1)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _check_stop(self) -> None:
        if self.stop_request.requested:
            raise StoppedError

    def _check_router(self) -> None:
        for router in self._routers:
            if router.exit_status is not None:
                raise ConfigurationError(f"the router ended: {router.last_words()}; logs are in {self.directory}")

    @contextlib.contextmanager
    def _timed(self, part: str) -> Any:
        began = time.monotonic()
        yield
        self.seconds[part] = time.monotonic() - began

    def _forget_directory(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def _private_directory() -> str:
    base = tempfile.gettempdir()
    short = base if len(os.fsencode(base)) <= _LONGEST_SOCKET_BASE else "/tmp"  # noqa: S108
    return tempfile.mkdtemp(prefix="argosy-", dir=short)
