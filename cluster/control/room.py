"""Whether what ranks will allocate fits their devices. Pure: plans in; memories that are unknown are not judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster.control.capacity.devices import KINDS, usable_bytes
from cluster.control.placement import Placement
from cluster.errors import ConfigurationError

if TYPE_CHECKING:
    from cluster.control.plan import RankPlan


def weight_room(placement: Placement, kv_bytes: int) -> tuple[float, ...]:
    """Bytes that the ranks of each stage together have for weights; empty on CPUs, or if a kind of GPU is unknown.

    Args:
        kv_bytes: what each rank sets aside for keys and values.
    """
    kinds = [[KINDS.get(node.device_kind) for node in group] for group in placement.rank_nodes]
    known = [[usable_bytes(kind) - kv_bytes for kind in group if kind is not None] for group in kinds]
    if placement.device != "cuda" or any(len(some) != len(group) for some, group in zip(known, kinds, strict=True)):
        return ()
    return tuple(map(sum, known))


def check_room(subject: str, ranks: Iterable[RankPlan]) -> None:
    """Refuse ranks that need more than their GPU has, or together more than their node's memory.

    Args:
        subject: what the ranks belong to, for the message.

    Raises:
        ConfigurationError: naming the stage or node, the bytes, and what would help.
    """
    by_node: dict[str, tuple[int, int]] = {}
    for rank in ranks:
        needed = rank.weight_bytes + rank.kv_bytes
        if rank.device == "cuda":
            kind = KINDS.get(rank.node.device_kind)
            if kind is not None and needed > usable_bytes(kind):
                raise ConfigurationError(
                    f"{subject}: a rank of stage {rank.shard.coordinates.stage} needs {_gigabytes(rank.weight_bytes)} "
                    f"of weights and {_gigabytes(rank.kv_bytes)} of KV cache, {rank.node.host} has {kind.name}s of "
                    f"{_gigabytes(kind.memory_bytes)}; raise tensor_parallel or pipeline_parallel, or lower "
                    "engine.kv_cache"
                )
        elif rank.node.memory_bytes:
            so_far, _ = by_node.get(rank.node.host, (0, 0))
            by_node[rank.node.host] = so_far + needed, rank.node.memory_bytes
    for host, (needed, memory) in by_node.items():
        if needed > memory:
            raise ConfigurationError(
                f"{subject}: {_gigabytes(needed)} of weights and KV cache do not fit {host}, which has "
                f"{_gigabytes(memory)} of memory; use more nodes, a smaller model or engine.kv_cache, or fewer replicas"
            )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
