"""Several regions on one machine, as far apart as real ones: what `argosy up --regions N` makes of one file.

Pure: configurations in, configurations out. Each region has its own controller, router, ports, ledger and Ray
namespace, and one small replica of each model where memory allows; messages between regions take a published round
trip longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.config import ArgosyConfig, ControllerConfig, RegionSection
from cluster.control.plan import ReplicaPlan
from cluster.errors import ConfigurationError
from cluster.simulate.regions import DEFAULT_REGIONS, round_trips

PLACES = (*DEFAULT_REGIONS, "Japan East", "Brazil South", "Australia East", "Central India", "South Africa North")
"""Of the round-trip table, in the order in which they are taken."""
PORT_STEP = 10
"""Between the ports of one region and of the next."""
RANK_PROCESS_BYTES = 450 * 2**20
"""A worker's own memory, with torch imported, beside weights and KV cache."""
REGION_PROCESS_BYTES = 600 * 2**20
"""Router, controller, engine and command of one region."""


def local_world(config: ArgosyConfig, count: int) -> list[ArgosyConfig]:
    """One configuration a region; the first keeps the file's ports.

    Args:
        count: how many regions.

    Raises:
        ConfigurationError: there are not so many, or the file cannot be multiplied.
    """
    if not 2 <= count <= len(PLACES):
        raise ConfigurationError(f"--regions: {count} is not between 2 and {len(PLACES)}")
    if config.regions:
        raise ConfigurationError("regions: the file names regions itself; run it without --regions")
    if config.ray.address != "local":
        raise ConfigurationError("ray.address: --regions is for one machine; use `local`, or one file a region")
    if config.router.listen.endswith(":0") or config.controller.listen.endswith(":0"):
        raise ConfigurationError("router.listen, controller.listen: --regions counts up from fixed ports, not from 0")
    names = [place.lower().replace(" ", "-") for place in PLACES[:count]]
    seconds = round_trips(PLACES[:count])
    controllers = [_shifted(config.controller.listen, index) for index in range(count)]
    return [
        _region(config, index, name, _others(names, controllers, seconds[index], index))
        for index, name in enumerate(names)
    ]


def without_room(world: Sequence[ArgosyConfig], plans: Sequence[Sequence[ReplicaPlan]], free_bytes: int) -> list[int]:
    """Which regions' replicas do not fit this machine's free memory beside those before them.

    Args:
        plans: of each region's replicas.
        free_bytes: what may be used.

    Raises:
        ConfigurationError: not even the first one fits.
    """
    left = free_bytes - len(world) * REGION_PROCESS_BYTES
    missing = []
    for index, region_plans in enumerate(plans):
        needed = sum(replica_bytes(plan) for plan in region_plans)
        if needed > left:
            missing.append(index)
        else:
            left -= needed
    if len(missing) == len(world):
        gib = (free_bytes / 2**30, (sum(map(replica_bytes, plans[0])) + len(world) * REGION_PROCESS_BYTES) / 2**30)
        raise ConfigurationError(f"--regions: {gib[0]:.1f} GiB are free, one replica and its regions take {gib[1]:.1f}")
    return missing


def without_replicas(config: ArgosyConfig) -> ArgosyConfig:
    """The region with its router alone, which uses the others' replicas."""
    models = tuple(model.model_copy(update={"replicas": 0}) for model in config.models)
    return config.model_copy(update={"models": models})


def replica_bytes(plan: ReplicaPlan) -> int:
    """What one replica will take of this machine's memory."""
    return sum(rank.weight_bytes + rank.kv_bytes + RANK_PROCESS_BYTES for rank in plan.ranks)


def _region(config: ArgosyConfig, index: int, name: str, others: tuple[RegionSection, ...]) -> ArgosyConfig:
    small = {"replicas": 1, "tensor_parallel": 1, "pipeline_parallel": 1, "expert_parallel": 1, "regions": ()}
    router = config.router.model_copy(update={"listen": _shifted(config.router.listen, index)})
    if router.http_listen is not None:
        router = router.model_copy(update={"http_listen": _shifted(router.http_listen, index)})
    controller = ControllerConfig(
        listen=_shifted(config.controller.listen, index), start_timeout_seconds=config.controller.start_timeout_seconds
    )
    return config.model_copy(
        update={
            "region": name,
            "regions": others,
            "models": tuple(model.model_copy(update=small) for model in config.models),
            "router": router,
            "controller": controller,
            "ray": config.ray.model_copy(update={"namespace": f"{config.ray.namespace}-{name}"}),
        }
    )


def _others(
    names: Sequence[str], controllers: Sequence[str], seconds: Sequence[float], index: int
) -> tuple[RegionSection, ...]:
    return tuple(
        RegionSection(
            name=name,
            controllers=(controller,),
            round_trip_seconds=seconds[other],
            injected_round_trip_seconds=seconds[other],
        )
        for other, (name, controller) in enumerate(zip(names, controllers, strict=True))
        if other != index
    )


def _shifted(address: str, index: int) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + PORT_STEP * index}"
