"""What each rank of each replica will hold and use, from files and the inventory alone. Starts and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import ArgosyConfig, ModelSection, PeersConfig
from cluster.control.placement import Placement, UnplaceableError, place, take
from cluster.control.room import check_room, weight_room
from cluster.control.topology import Node
from cluster.cut import cut
from cluster.errors import ConfigurationError
from cluster.ids import Epoch, ModelName, RegionId, ReplicaId
from cluster.launch import BYTES_PER_ELEMENT as BYTES_PER_ELEMENT
from cluster.launch import CollectivesKind, Device, Dtype, ReplicaSpec
from model.config import ModelConfig, UnsupportedModelError
from model.parallel.dims import ParallelDims
from model.parallel.partition import PartitionError, RankShard, kv_block_bytes
from model.weights.tables import weight_bytes


@dataclass(frozen=True, slots=True)
class WantedReplica:
    """One replica of the configuration, with its checkpoint's shape."""

    replica_id: ReplicaId
    section: ModelSection
    directory: Path
    shape: ModelConfig

    @property
    def dims(self) -> ParallelDims:
        return dims_of(self.section)


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank. Bytes are what it will allocate."""

    shard: RankShard
    node: Node
    device: str
    weight_bytes: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """One replica with every "auto" decided."""

    replica_id: ReplicaId
    model: ModelName
    directory: Path
    dims: ParallelDims
    device: Device
    dtype: Dtype
    collectives: CollectivesKind
    context_length: int
    num_blocks: int
    threads_per_rank: int
    section: ModelSection
    placement: Placement
    ranks: tuple[RankPlan, ...]

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit, all sequences together."""
        return self.num_blocks * self.section.engine.block_size

    def spec(self, region: RegionId, epoch: Epoch, secret: bytes, peers: PeersConfig) -> ReplicaSpec:
        return ReplicaSpec(
            region=region,
            replica_id=self.replica_id,
            epoch=epoch,
            model=self.model,
            directory=self.directory,
            dims=self.dims,
            device=self.device,
            dtype=self.dtype,
            collectives=self.collectives,
            context_length=self.context_length,
            num_blocks=self.num_blocks,
            threads_per_rank=self.threads_per_rank,
            engine=self.section.engine,
            quantization=self.section.quantization,
            secret=secret,
            peers=peers,
            speeds=self.placement.speeds,
            room=weight_room(self.placement, int(self.section.engine.kv_cache)),
        )


def dims_of(section: ModelSection) -> ParallelDims:
    return ParallelDims(tp=section.tensor_parallel, pp=section.pipeline_parallel, ep=section.expert_parallel)


def wanted_replicas(config: ArgosyConfig) -> list[WantedReplica]:
    """Every replica that the configuration asks for, with its checkpoint's config.json read.

    Raises:
        ConfigurationError: a checkpoint is not there or is of an architecture that is not served.
    """
    wanted: list[WantedReplica] = []
    for section in config.models:
        directory = section.directory(config.model_store)
        shape = read_shape(section, directory)
        ids = [ReplicaId(f"{section.name}/{index}") for index in range(section.replicas)]
        wanted.extend(WantedReplica(replica_id, section, directory, shape) for replica_id in ids)
    return wanted


def read_shape(section: ModelSection, directory: Path) -> ModelConfig:
    """The checkpoint's dimensions.

    Raises:
        ConfigurationError: it is not there, or cannot be served.
    """
    try:
        return ModelConfig.from_checkpoint(directory)
    except FileNotFoundError:
        fix = "set models.path to a checkpoint directory" if section.path else f"run `argosy pull {section.name}`"
        raise ConfigurationError(f"model {section.name}: no config.json in {directory}; {fix}") from None
    except UnsupportedModelError as error:
        raise ConfigurationError(f"model {section.name}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"model {section.name}: {directory / 'config.json'} is damaged: {error!r}") from None


def logical_cpus(config: ArgosyConfig) -> int:
    """CPUs that a local cluster must claim to have: one a rank, one an engine."""
    needed = sum(section.replicas * (dims_of(section).world_size + 1) for section in config.models)
    return config.ray.num_cpus or max(1, needed)


def plan_region(config: ArgosyConfig, nodes: Sequence[Node]) -> list[ReplicaPlan]:
    """Plan every replica of a region onto free nodes.

    Raises:
        ConfigurationError: something cannot be cut, placed or held; the message names the key and a fix.
    """
    wanted = wanted_replicas(config)
    num_ranks = sum(replica.dims.world_size for replica in wanted)
    free = list(nodes)
    plans = []
    for replica in wanted:
        try:
            plan = plan_replica(replica, free, num_ranks)
        except UnplaceableError as error:
            raise ConfigurationError(f"replica {replica.replica_id} cannot be placed: {error}") from None
        free = take(free, plan.placement)
        plans.append(plan)
    check_room("all replicas", [rank for plan in plans for rank in plan.ranks])
    return plans


def settled(config: ArgosyConfig, plans: Sequence[ReplicaPlan]) -> ArgosyConfig:
    """The configuration with what the plans decided, so that routers and replicas agree on it."""
    decided = {plan.model: {"device": plan.device, "context_length": plan.context_length} for plan in plans}
    models = tuple(model.model_copy(update=decided.get(ModelName(model.name), {})) for model in config.models)
    return config.model_copy(update={"models": models})


def plan_replica(wanted: WantedReplica, free: Sequence[Node], num_ranks: int) -> ReplicaPlan:
    """Place one replica on what is free and decide everything that was left open.

    Args:
        num_ranks: ranks of the whole region, which share the nodes' cores.

    Raises:
        UnplaceableError: the free devices do not hold it now.
        ConfigurationError: it can never run as configured.
    """
    section, shape, dims = wanted.section, wanted.shape, wanted.dims
    shards = _cut(wanted)
    device, placement = _place(wanted, free)
    dtype = _dtype(section, shape, device)
    room = weight_room(placement, int(section.engine.kv_cache))
    if placement.speeds or room:
        shards = _cut(wanted, dtype, placement.speeds, room)
    width = BYTES_PER_ELEMENT[dtype]
    block_bytes = [kv_block_bytes(shape, shard, section.engine.block_size, width) for shard in shards]
    num_blocks = int(section.engine.kv_cache) // max(block_bytes)
    context_length = _context_length(wanted, num_blocks, max(block_bytes))
    cores = sum(node.cores for node in free)
    plan = ReplicaPlan(
        replica_id=wanted.replica_id,
        model=ModelName(section.name),
        directory=wanted.directory,
        dims=dims,
        device=device,
        dtype=dtype,
        collectives=_collectives(section, device, placement),
        context_length=context_length,
        num_blocks=num_blocks,
        threads_per_rank=section.threads_per_rank or max(1, cores // max(1, num_ranks)),
        section=section,
        placement=placement,
        ranks=tuple(
            RankPlan(
                shard=shard,
                node=placement.rank_nodes[shard.coordinates.stage][shard.coordinates.tp_rank],
                device=device,
                weight_bytes=weight_bytes(shape, shard, width, section.quantization),
                kv_bytes=num_blocks * bytes_,
            )
            for shard, bytes_ in zip(shards, block_bytes, strict=True)
        ),
    )
    check_room(f"model {section.name}", plan.ranks)
    return plan


def _dtype(section: ModelSection, shape: ModelConfig, device: Device) -> Dtype:
    """The arithmetic type; refuses combinations of type, device and quantisation that are not served."""
    where = f"model {section.name}"
    if device == "cuda" and not section.engine.allow_untested_gpu:
        raise ConfigurationError(
            f"{where}: parts of the GPU path never ran on a GPU (docs/gpu-status.md); "
            "set engine.allow_untested_gpu: true to try it, or device: cpu"
        )
    dtype: Dtype = section.dtype if section.dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")
    if device == "cpu" and dtype != "float32":
        raise ConfigurationError(f"{where}: dtype {dtype} is not served on cpu; use float32 or auto")
    if section.quantization != "none" and shape.quantisation is not None:
        raise ConfigurationError(
            f"{where}: quantization {section.quantization}: the checkpoint is already quantised "
            f"({shape.quantisation.method}); use none"
        )
    return dtype


def _cut(
    wanted: WantedReplica, dtype: Dtype = "float32", speeds: tuple[float, ...] = (), room: tuple[float, ...] = ()
) -> tuple[RankShard, ...]:
    try:
        return cut(wanted.shape, wanted.dims, wanted.section.quantization, dtype, speeds, room)
    except PartitionError as error:
        dims = wanted.dims
        where = f"tensor_parallel {dims.tp}, pipeline_parallel {dims.pp}"
        where += f", expert_parallel {dims.ep}" if dims.ep > 1 else ""
        raise ConfigurationError(f"model {wanted.section.name}: {where} is impossible: {error}") from None


def _place(wanted: WantedReplica, free: Sequence[Node]) -> tuple[Device, Placement]:
    def can_cut(dims: ParallelDims) -> bool:
        try:
            cut(wanted.shape, dims, wanted.section.quantization)
        except PartitionError:
            return False
        return True

    if wanted.section.device != "auto":
        device: Device = wanted.section.device
        return device, place(wanted.dims, device, free, can_cut=can_cut)
    try:
        return "cuda", place(wanted.dims, "cuda", free)
    except UnplaceableError:
        return "cpu", place(wanted.dims, "cpu", free, can_cut=can_cut)


def _collectives(section: ModelSection, device: Device, placement: Placement) -> CollectivesKind:
    chosen = section.collectives
    if chosen == "auto":
        if device == "cuda":
            return "nccl"
        return "gloo" if placement.spans_nodes else "shared_memory"
    if chosen == "nccl" and device == "cpu":
        raise ConfigurationError(f"model {section.name}: collectives nccl needs device cuda; use auto or gloo")
    if chosen == "shared_memory" and (device == "cuda" or placement.spans_nodes):
        raise ConfigurationError(
            f"model {section.name}: collectives shared_memory is for CPU ranks of one node; use auto, gloo or nccl"
        )
    return chosen


def _context_length(wanted: WantedReplica, num_blocks: int, block_bytes: int) -> int:
    """At most the checkpoint's context, and at most what the KV cache holds, or one request could never run."""
    section, limit = wanted.section, wanted.shape.context_length
    engine = section.engine
    room = num_blocks * engine.block_size
    asked = section.context_length
    where = f"model {section.name}: context_length {asked}"
    if asked is not None and asked > limit:
        raise ConfigurationError(f"{where} is more than the checkpoint's {limit}; set it to at most {limit}")
    if asked is not None and asked > room:
        needed = -(-asked // engine.block_size) * block_bytes
        mebibytes = -(-needed // 2**20)
        raise ConfigurationError(
            f"{where} does not fit engine.kv_cache, which holds {room} tokens a rank; set kv_cache to {mebibytes}MiB"
        )
    if room < 16:
        raise ConfigurationError(
            f"model {section.name}: engine.kv_cache holds only {room} tokens; set it to at least {64 * block_bytes}"
        )
    return asked or min(limit, room)
