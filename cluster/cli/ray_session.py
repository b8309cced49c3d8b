"""The Ray cluster under a region: started private and quiet on this machine, or joined. Knows no replicas.

Whoever reaches a Ray port can run code as this user. So a cluster that is started here asks for a token (in a file that
only this user can read), and listens on the loopback interface alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from cluster.cli.preflight import check_port
from cluster.config import ArgosyConfig, RayConfig
from cluster.control.plan import logical_cpus
from cluster.control.topology import Node, nodes_from_ray
from cluster.errors import ConfigurationError
from cluster.launch import CONTROLLER_ACTOR

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's least. No token and no weight goes through it."""
CONTROLLER_NAME = "controller"
CONTROLLER_START_SECONDS = 60.0
CONTROLLER_END_SECONDS = 10.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray's own name for "this cluster is one machine": every one of its ports binds 127.0.0.1, on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray makes its workers nice to the rest of the machine; ours are what the machine is for.
    "RAY_worker_niceness": "0",
    # Ray would otherwise inspect how this process was launched, to launch its workers alike.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def start_ray(config: ArgosyConfig, directory: Path) -> None:
    """Start a cluster of this machine, or join the one that the configuration names.

    Args:
        directory: private to this run; holds the token, and Ray's sockets and logs.

    Raises:
        ConfigurationError: the named cluster cannot be joined.
    """
    if config.ray.address == "local":
        _secure(directory)
    import ray

    quiet: dict[str, Any] = {"namespace": config.ray.namespace, "log_to_driver": False, "logging_level": logging.ERROR}
    if config.ray.address == "local":
        ray.init(
            address="local",
            num_cpus=logical_cpus(config),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(directory / "ray"),
            **quiet,
        )
        return
    try:
        ray.init(address=config.ray.address, **quiet)
        _end_what_was_left(config)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigurationError(f"ray.address: no cluster at {config.ray.address}: {line}") from None


def _secure(directory: Path) -> None:
    """Make the token, and say in the environment that Ray and all its children must use it."""
    token = directory / "ray-token"
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(_QUIET, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))


def joined_nodes() -> list[Node]:
    """The nodes of the cluster that this process has joined, with what is free on them."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes_from_ray(nodes, ray.state.available_resources_per_node(), local=False)


def cluster_address() -> str:
    """host:port at which others on this machine can join the cluster that this process has started."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def start_controller(config: ArgosyConfig, *, replace: bool = False, again: bool = False) -> Any:
    """Start the region's controller on this node and return its actor handle. It outlives this process if Ray does.

    Args:
        replace: end a controller that runs already. Its replicas stay, and the new one adopts them.
        again: one that this command started has ended; what was applied since counts more than the configuration.

    Raises:
        ConfigurationError: another controller runs in the namespace, or this one cannot start.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.experimental import internal_kv
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.worker.launcher import RoleActor

    if replace:
        _end_controller(config)
        internal_kv._internal_kv_put(_kept_key(config), b"1", overwrite=True)
    if not again:
        from cluster.control.ray_backend import applied_key

        internal_kv._internal_kv_del(applied_key(config.ray.namespace))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        controller = RoleActor.options(
            name=CONTROLLER_NAME,
            namespace=config.ray.namespace,
            lifetime="detached",
            num_cpus=0,
            scheduling_strategy=here,
        ).remote(CONTROLLER_ACTOR)
    except ValueError:
        raise ConfigurationError(
            f"ray.namespace: a controller already runs in {config.ray.namespace!r}; stop it or choose another namespace"
        ) from None
    try:
        ray.get(controller.start.remote(config), timeout=CONTROLLER_START_SECONDS)
    except RayTaskError as error:
        if isinstance(error.cause, ConfigurationError):
            raise error.cause from None
        raise
    return controller


def _end_controller(config: ArgosyConfig) -> None:
    """Kill the namespace's controller, if there is one, and wait for its name and its port. Replicas do not notice."""
    import ray

    end = time.monotonic() + CONTROLLER_END_SECONDS
    while time.monotonic() < end:
        try:
            ray.kill(ray.get_actor(CONTROLLER_NAME, namespace=config.ray.namespace), no_restart=True)
        except ValueError:
            with contextlib.suppress(ConfigurationError):
                check_port("controller.listen", config.controller.listen)
                return
        time.sleep(0.1)


def _end_what_was_left(config: ArgosyConfig) -> None:
    """End the region of a command that was killed before it could do so: its actors outlive it, and hold devices.

    A region that was meant to be kept, or whose command still runs, is left alone.
    """
    import ray
    from ray.experimental import internal_kv

    if internal_kv._internal_kv_get(_kept_key(config)) is not None:
        return
    try:
        controller = ray.get_actor(CONTROLLER_NAME, namespace=config.ray.namespace)
    except ValueError:
        return
    job = ray.state.actors(controller._actor_id.hex()).get("JobID")
    if any(known["JobID"] == job and not known["IsDead"] for known in ray.state.jobs()):
        return
    logger.warning("ending what a command that was killed left in %r", config.ray.namespace)
    _end_controller(config)
    _end_replicas(config.ray)


def _end_replicas(config: RayConfig) -> None:
    """Kill every replica of the namespace."""
    from cluster.control.ray_backend import RayBackend

    async def end() -> None:
        backend = RayBackend(config)
        for found in await backend.running():
            await backend.stop(found.replica_id, found.epoch, graceful=False)

    asyncio.run(end())


def _kept_key(config: ArgosyConfig) -> str:
    return f"argosy/{config.ray.namespace}/kept"


def is_alive(controller: Any) -> bool:
    """Whether the controller's process still answers."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        ray.get(controller.ping.remote(), timeout=5.0)
    except GetTimeoutError:
        return True
    except RayError:
        return False
    return True


def stop_controller(controller: Any, seconds: float) -> None:
    """End every replica, then the controller; whatever does not end in time is killed with Ray."""
    import ray
    from ray.exceptions import RayError

    with contextlib.suppress(RayError):
        ray.get(controller.stop.remote(), timeout=seconds)
    with contextlib.suppress(RayError, ValueError):
        ray.kill(controller, no_restart=True)
    # Replicas are detached: on a cluster that goes on, nothing else would end those that did not end in time.
    _end_replicas(RayConfig(namespace=ray.get_runtime_context().namespace))


def stop_ray() -> None:
    """Leave the cluster, if there is one; a cluster started here ends."""
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()
