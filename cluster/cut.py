"""How a replica's model is cut, from what its specification says: one answer for controller, engine and workers."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.launch import BYTES_PER_ELEMENT, Dtype, ReplicaSpec
from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from model.parallel.partition import PartitionError, RankShard, StageMemory, partition
from model.quantization import Quantization, cut_quantum
from model.weights.tables import part_bytes


def cut_replica(spec: ReplicaSpec, model: ModelConfig) -> tuple[RankShard, ...]:
    """What each rank of a planned replica holds, by world rank."""
    return cut(model, spec.dims, spec.quantization, spec.dtype, spec.speeds, spec.room)


def cut(
    model: ModelConfig,
    dims: ParallelDims,
    quantization: Quantization,
    dtype: Dtype = "float32",
    speeds: Sequence[float] = (),
    room: Sequence[float] = (),
) -> tuple[RankShard, ...]:
    """What each rank would hold, by world rank.

    Args:
        speeds: relative speed of each rank's device; empty: all alike.
        room: bytes that each stage's ranks together have for weights; empty: unknown. Where no cut has room for all
            stages, the model is cut by speed alone: whoever plans says which rank does not fit.

    Raises:
        PartitionError: it cannot be cut that way.
    """
    quantum, weights = cut_quantum(quantization), speeds or None
    if room:
        memory = StageMemory(part_bytes(model, BYTES_PER_ELEMENT[dtype], quantization), room)
        try:
            return partition(model, dims, quantum=quantum, weights=weights, memory=memory)
        except PartitionError:
            pass
    return partition(model, dims, quantum=quantum, weights=weights)
