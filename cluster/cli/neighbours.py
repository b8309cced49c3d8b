"""The other regions of a local world: each an `argosy up` of its own, a child that joins this one's Ray.

Knows processes and what they listen on; decides nothing about regions (`local_world.py` does).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
import psutil
from rich.console import Console

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.cli.local_world import local_world, without_replicas, without_room
from cluster.cli.preflight import check_ports
from cluster.cli.processes import StopRequest
from cluster.config import ArgosyConfig
from cluster.control.plan import logical_cpus, plan_region
from cluster.control.topology import this_machine
from cluster.errors import ConfigurationError
from cluster.peers import Role
from cluster.rpc import private_channel

POLL_SECONDS = 0.2
END_SECONDS = 15.0
"""Beyond draining, for a region's processes to end in order."""


class Neighbour:
    """One region's command as a child that ends with us."""

    def __init__(self, config: ArgosyConfig, directory: Path, ray_address: str) -> None:
        self.config = config
        self.log = directory / f"{config.region}.log"
        file = directory / f"{config.region}.json"
        ray = config.ray.model_copy(update={"address": ray_address, "num_cpus": None})
        file.write_text(config.model_copy(update={"ray": ray}).model_dump_json(indent=2))
        command = [sys.executable, "-m", "cluster.cli", "up", "--exit-with-parent", "-f", str(file)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether every replica that it wants takes requests.

        Raises:
            ConfigurationError: it has ended.
        """
        if not self.is_running:
            raise ConfigurationError(f"region {self.config.region} ended: {self._last_words()}")
        status = asyncio.run(self._ask())
        wanted = sum(model.replicas for model in self.config.models)
        ready = [one for one in status.replicas if one.state == control_pb2.REPLICA_STATE_READY]
        return bool(status.region) and len(ready) >= wanted

    async def _ask(self) -> control_pb2.GetStatusResponse:
        """What its controller says; nothing, if it does not answer."""
        identity = self.config.peers.identity(Role.OPERATOR)
        async with private_channel(self.config.controller.listen, identity, to=Role.CONTROLLER) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                status: control_pb2.GetStatusResponse = await stub.GetStatus(control_pb2.GetStatusRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return control_pb2.GetStatusResponse()
            return status

    def ask_to_end(self) -> None:
        """As Ctrl-C would."""
        self._process.terminate()

    def end(self, seconds: float) -> None:
        """Wait for it, and kill it if it takes longer."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


def multiply(config: ArgosyConfig, count: int, screen: Console) -> tuple[ArgosyConfig, Neighbours]:
    """The first region, which starts Ray for all, and the others. Says which are left without a replica.

    Raises:
        ConfigurationError: the file cannot be multiplied, a port is taken, or memory holds no replica.
    """
    world = local_world(config, count)
    for region in world[1:]:
        check_ports(region)
    num_cpus = sum(logical_cpus(region) for region in world)
    plans = [plan_region(region, [this_machine(num_cpus)]) for region in world]
    for index in without_room(world, plans, psutil.virtual_memory().available):
        world[index] = without_replicas(world[index])
        screen.print(f"{world[index].region}: no memory is left for a replica; its router uses the others'")
    first = world[0].model_copy(update={"ray": world[0].ray.model_copy(update={"num_cpus": num_cpus})})
    return first, Neighbours(world[1:])


class Neighbours:
    """All of them; none, where a region is alone."""

    def __init__(self, configs: Sequence[ArgosyConfig] = ()) -> None:
        self._configs = configs
        self._running: list[Neighbour] = []

    @property
    def routers(self) -> list[tuple[str, str]]:
        """(region, host:port) of each."""
        return [(config.region, config.router.listen) for config in self._configs]

    def start(self, directory: Path, ray_address: str) -> None:
        """Start all at once; they come up side by side."""
        self._running = [Neighbour(config, directory, ray_address) for config in self._configs]

    def wait_until_ready(self, stop: StopRequest) -> bool:
        """Wait for all of them; False if a signal came first.

        Raises:
            ConfigurationError: one has ended.
        """
        waiting = list(self._running)
        while waiting:
            waiting = [neighbour for neighbour in waiting if not neighbour.is_ready()]
            if waiting and stop.wait(POLL_SECONDS):
                return False
        return True

    def lost(self) -> list[str]:
        """Regions that have ended since the last look."""
        ended = [neighbour for neighbour in self._running if not neighbour.is_running]
        for neighbour in ended:
            self._running.remove(neighbour)
        return [neighbour.config.region for neighbour in ended]

    def end(self, drain_seconds: float) -> None:
        """End all of them in order, side by side."""
        for neighbour in self._running:
            neighbour.ask_to_end()
        until = time.monotonic() + drain_seconds + END_SECONDS
        for neighbour in self._running:
            neighbour.end(max(0.1, until - time.monotonic()))
        self._running.clear()
