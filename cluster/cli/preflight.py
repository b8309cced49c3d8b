"""Everything that can be known to be wrong before anything is started: files, shapes, room, ports. Takes seconds."""

from __future__ import annotations

import contextlib
import errno
import socket
import time

import psutil

from cluster.config import ArgosyConfig
from cluster.control.plan import ReplicaPlan, logical_cpus, plan_region, read_shape
from cluster.control.topology import this_machine
from cluster.errors import ConfigurationError
from model.weights.checkpoint import WeightsError, check_weights

RAY_ANSWER_SECONDS = 3.0
RAY_START_SECONDS = 60.0
"""A head that is started beside us takes some seconds."""


def preflight(config: ArgosyConfig, *, with_router: bool = True, keep: bool = False) -> list[ReplicaPlan]:
    """Check a configuration against this machine; the plan of each replica, empty if another cluster's nodes decide.

    Args:
        with_router: a router will listen here.
        keep: a controller that listens already will be replaced.

    Raises:
        ConfigurationError: one line that names the key or file and the fix.
    """
    if keep and config.ray.address == "local":
        raise ConfigurationError(
            "ray.address: `local` ends with this command, so nothing can be kept; name a running head"
        )
    check_ports(config, with_router=with_router, with_controller=not keep)
    check_models(config)
    if config.ray.address == "auto":
        return []
    if config.ray.address != "local":
        _check_ray(config.ray.address, seconds=RAY_START_SECONDS if keep else 0.0)
        return []
    return plan_region(config, [this_machine(logical_cpus(config))])


def check_models(config: ArgosyConfig) -> None:
    """Every checkpoint is there, whole, and of a kind that is served.

    Raises:
        ConfigurationError: it is not.
    """
    for section in config.models:
        directory = section.directory(config.model_store)
        read_shape(section, directory)
        if not (directory / "tokenizer.json").is_file():
            raise ConfigurationError(
                f"model {section.name}: tokenizer.json is missing in {directory}; pull the model anew"
            )
        try:
            check_weights(directory)
        except WeightsError as error:
            raise ConfigurationError(f"model {section.name}: {error}") from None


def check_ports(config: ArgosyConfig, *, with_router: bool = True, with_controller: bool = True) -> None:
    """Every address that this machine will listen on is free.

    Raises:
        ConfigurationError: one is not, or is not this machine's.
    """
    addresses = {"router.listen": config.router.listen} if with_router else {}
    if with_router and config.router.http_listen is not None:
        addresses["router.http_listen"] = config.router.http_listen
    if with_controller:
        addresses["controller.listen"] = config.controller.listen
    seen: dict[str, str] = {}
    for key, address in addresses.items():
        if address in seen and not address.endswith(":0"):
            raise ConfigurationError(f"{key}: {address} is also {seen[address]}; give each its own port")
        seen[address] = key
        check_port(key, address)


def _check_ray(address: str, seconds: float) -> None:
    """Refuse a head that does not answer within `seconds`. Ray itself would try for more than a minute."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=RAY_ANSWER_SECONDS).close()
            return
        except ValueError:
            raise ConfigurationError(
                f"ray.address: {address!r} is neither `local` nor host:port of a Ray head"
            ) from None
        except OSError as error:
            if time.monotonic() >= end:
                reason = error.strerror or "no answer"
                raise ConfigurationError(
                    f"ray.address: nothing answers at {address} ({reason}); run `ray start --head` there, or use local"
                ) from None
        time.sleep(0.2)


def check_port(key: str, address: str) -> None:
    """
    Raises:
        ConfigurationError: nothing can listen on `address`, the value of `key`.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise ConfigurationError(f"{key}: {host!r} is not an address of this machine: {error.strerror}") from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As gRPC binds: connections of an earlier run that are still closing do not count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
            probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                owner = _listener(int(port))
                raise ConfigurationError(
                    f"{key}: port {port} of {host} is in use{owner}; stop that, or set {key} to another port"
                ) from None
            raise ConfigurationError(f"{key}: cannot listen on {address}: {error.strerror}; set another") from None


def _listener(port: int) -> str:
    """Who listens there, if the system says."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
