"""Makes a rank's context: picks between shared memory, gloo and NCCL, and opens them. Knows stores, no workers.

Process groups are made one by one and belong to the context; torch's process-wide default group is never touched, so
that two engines fit in one process. Nothing is ever pickled: only tensors and short byte strings travel.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import torch
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from model.parallel.context import (
    ParallelContext,
    PipelineLinks,
    SingleRankGroup,
    SingleStageLinks,
    TensorGroup,
    single_rank_context,
)
from model.parallel.p2p import ProcessGroupLinks, SharedMemoryLinks
from model.parallel.partition import RankShard
from model.parallel.process_group import Backend, ProcessGroupTensorGroup, open_backend, shares_device
from model.parallel.progress import CollectiveError, ProgressCounter
from model.parallel.shared_memory import unsupported_reason
from model.parallel.shared_memory_group import SharedMemoryGroup

Kind = Literal["nccl", "gloo", "shared_memory"]

_log = logging.getLogger(__name__)


def supported_kind(kind: Kind) -> tuple[Kind, str | None]:
    """The kind to use on this machine, and why if it is not the one asked for. Only shared memory needs no store."""
    reason = unsupported_reason() if kind == "shared_memory" else None
    return ("gloo", f"{reason}; using gloo") if reason else (kind, None)


def open_store(host: str, world_size: int, timeout_seconds: float) -> tuple[Store, str]:
    """On world rank 0: open the key-value store over which gloo and NCCL groups meet, at a free port of `host` alone.

    Returns:
        The store and its address "host:port" for the other ranks. The protocol is neither encrypted nor authenticated:
        `host` must be on a private network.
    """
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        store = TCPStore(
            host,
            port,
            world_size,
            is_master=True,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    return store, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect_store(address: str, timeout_seconds: float) -> Store:
    """On the other ranks: join the store at the address that `open_store` returned."""
    host, _, port = address.rpartition(":")
    return TCPStore(
        host.strip("[]"), int(port), is_master=False, timeout=timedelta(seconds=timeout_seconds), wait_for_workers=False
    )


def make_context(
    kind: Kind,
    shard: RankShard,
    *,
    namespace: str,
    device: torch.device,
    timeout_seconds: float,
    store: Store | None = None,
    host: str | None = None,
    progress: ProgressCounter | None = None,
) -> ParallelContext:
    """Connect this rank to the others of its replica; all ranks call it at about the same time.

    Args:
        namespace: names the replica and epoch, alike on all its ranks and on no other replica's.
        timeout_seconds: longest wait for a peer, here and in every later operation.
        store: where gloo and NCCL groups meet; shared memory needs none.
        host: address of this machine at which gloo listens; default: that of its host name.

    Raises:
        CollectiveError: a peer did not come, or `kind` cannot work here.
    """
    progress = progress or ProgressCounter()
    kind, reason = supported_kind(kind)
    if reason:
        _log.warning("%s", reason)
    if shard.dims.world_size == 1:
        return single_rank_context(shard, progress)
    progress.bump("rendezvous")
    if kind == "shared_memory":
        return _over_shared_memory(shard, namespace, timeout_seconds, progress)
    if store is None:
        raise CollectiveError(f"{kind} needs a store to meet at ({reason or 'none was given'})")
    store = PrefixStore(namespace, store)
    world_rank = shard.coordinates.stage * shard.dims.tp + shard.coordinates.tp_rank
    if kind == "nccl" and shares_device(store, world_rank, shard.dims.world_size, device):
        kind = "gloo"
        _log.warning("two ranks share a GPU, which NCCL does not allow; using gloo")

    def meet(kind: Literal["gloo", "nccl"], axis: str, rank: int, size: int) -> Backend:
        meeting = PrefixStore(f"{kind}/{axis}", store)
        return open_backend(kind, meeting, rank, size, host=host, timeout_seconds=timeout_seconds)

    return _over_process_groups(kind, shard, meet, device, timeout_seconds, progress)


def _over_process_groups(
    kind: Literal["gloo", "nccl"],
    shard: RankShard,
    meet: Callable[[Literal["gloo", "nccl"], str, int, int], Backend],
    device: torch.device,
    timeout_seconds: float,
    progress: ProgressCounter,
) -> ParallelContext:
    dims, stage, tp_rank = shard.dims, shard.coordinates.stage, shard.coordinates.tp_rank
    group: TensorGroup = SingleRankGroup()
    links: PipelineLinks = SingleStageLinks()
    if dims.tp > 1:
        group = ProcessGroupTensorGroup(meet(kind, f"stage{stage}", tp_rank, dims.tp), tp_rank, dims.tp, progress)
    if dims.pp > 1:
        tokens = meet("gloo", f"rank{tp_rank}", stage, dims.pp)
        links = ProcessGroupLinks(
            tokens if kind == "gloo" else meet("nccl", f"rank{tp_rank}", stage, dims.pp),
            tokens,
            stage,
            dims.pp,
            device=device,
            wire_device=torch.device("cpu") if kind == "gloo" else device,
            timeout_seconds=timeout_seconds,
            progress=progress,
        )
    return ParallelContext(shard, group, links, progress)


def _over_shared_memory(
    shard: RankShard, namespace: str, timeout_seconds: float, progress: ProgressCounter
) -> ParallelContext:
    dims, stage, tp_rank = shard.dims, shard.coordinates.stage, shard.coordinates.tp_rank
    group: TensorGroup = SingleRankGroup()
    links: PipelineLinks = SingleStageLinks()
    if dims.tp > 1:
        name = f"{namespace}/stage{stage}"
        group = SharedMemoryGroup(name, tp_rank, dims.tp, timeout_seconds=timeout_seconds, progress=progress)
    if dims.pp > 1:
        name = f"{namespace}/rank{tp_rank}"
        links = SharedMemoryLinks(name, stage, dims.pp, timeout_seconds=timeout_seconds, progress=progress)
    return ParallelContext(shard, group, links, progress)
