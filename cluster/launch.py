"""What the controller hands to engines and workers when it starts them: plain data, no ray, no torch.

`control` writes these, `replica` and `worker` read them, so neither imports the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.config import EngineConfig, LogConfig, MetricsConfig, PeersConfig, TracesConfig
from cluster.ids import Epoch, ModelName, RegionId, ReplicaId
from model.parallel.dims import ParallelDims, RankCoordinates
from model.quantization import Quantization

Device = Literal["cpu", "cuda"]
CollectivesKind = Literal["nccl", "gloo", "shared_memory"]
Dtype = Literal["float32", "bfloat16", "float16"]
BYTES_PER_ELEMENT: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

ENGINE_ACTOR = "cluster.replica.actor:EngineActor"
WORKER_ACTOR = "cluster.worker.actor:WorkerActor"
CONTROLLER_ACTOR = "cluster.control.actor:ControllerActor"
"""Entry points by name: `cluster.worker.launcher` imports them in the actor's own process, nobody else does."""


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What engine and workers of one epoch of one replica agree on. "auto" values are already decided."""

    region: RegionId
    replica_id: ReplicaId
    epoch: Epoch
    model: ModelName
    directory: Path
    dims: ParallelDims
    device: Device
    dtype: Dtype
    collectives: CollectivesKind
    context_length: int
    num_blocks: int
    """KV blocks, the same on every rank."""
    threads_per_rank: int
    engine: EngineConfig
    quantization: Quantization
    secret: bytes
    """32 random bytes of this epoch: proves membership on the step channel."""
    speeds: tuple[float, ...] = ()
    """Relative speed of each rank's device, by which the model is cut; empty: all alike."""
    room: tuple[float, ...] = ()
    """Bytes that the ranks of each stage together have for weights; empty: unknown."""
    peers: PeersConfig = field(default_factory=PeersConfig)
    """Certificates of engine and workers."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine."""

    replica: ReplicaSpec
    host: str
    """Address of its node that routers and workers can reach."""


@dataclass(frozen=True, slots=True)
class EngineAddresses:
    """Where a started engine listens, host:port each."""

    service: str
    """`ReplicaService`, for routers."""
    step_channel: str
    """For workers."""
    metrics: str = ""
    """For Prometheus; empty if nothing is exported."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One rank."""

    replica: ReplicaSpec
    coordinates: RankCoordinates
    step_channel: str
    """host:port of its engine's step channel."""
    host: str
    """Address of its own node."""


def describe(spec: object) -> dict[str, object]:
    """What heads every log line of the process that this specification starts."""
    match spec:
        case WorkerSpec(replica=replica, coordinates=at):
            return {
                "role": "worker",
                "region": replica.region,
                "replica": replica.replica_id,
                "epoch": replica.epoch,
                "stage": at.stage,
                "rank": at.tp_rank,
            }
        case EngineSpec(replica=replica):
            return {
                "role": "engine",
                "region": replica.region,
                "replica": replica.replica_id,
                "epoch": replica.epoch,
            }
        case _:
            return {"role": type(spec).__name__.removesuffix("Spec").lower()}


def log_config(spec: object) -> LogConfig:
    """How the process that this specification starts is to log."""
    match spec:
        case WorkerSpec(replica=replica) | EngineSpec(replica=replica):
            return replica.log
        case _:
            return LogConfig(files=False)
