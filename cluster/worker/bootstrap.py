"""Turns a process into a rank: threads, torch, the parallel context, the shard's weights. Knows no engine and no steps.

torch is imported here and nowhere before, so that a worker has said hello long before the import ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from cluster.cut import cut_replica
from cluster.launch import ReplicaSpec, WorkerSpec
from cluster.worker.state import WorkerState
from cluster.worker.stepper import Runner
from model.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from model.parallel.context import ParallelContext

MEET_SECONDS = 600.0
"""How long a rank waits for the others: they read weights of different sizes. In service the engine is far quicker to
notice a rank that stands still."""


class Bootstrap(Protocol):
    """Makes this process a rank. `wait_rendezvous(timeout_seconds)` gives the address of the ranks' store."""

    def __call__(self, spec: WorkerSpec, state: WorkerState, wait_rendezvous: Callable[[float], str]) -> Runner: ...


def load_shard(spec: WorkerSpec, state: WorkerState, wait_rendezvous: Callable[[float], str]) -> Runner:
    """The real thing.

    Raises:
        ValueError: the weights or the partition are not what the specification says; the message names the fix.
        TimeoutError: the other ranks did not come.
    """
    state.enter("importing")
    _set_threads_before_import(spec.replica.threads_per_rank)
    import torch

    from cluster.worker.shard_runner import ShardRunner, TimedGroup, TimedLinks
    from model.probe import measure_peaks
    from model.shard import DTYPES, Shard, ShardOptions

    _set_threads(spec.replica.threads_per_rank)
    replica = spec.replica
    device = _device(spec, torch.cuda.device_count() if replica.device == "cuda" else 0)
    state.enter("loading")
    context = _make_context(spec, state, wait_rendezvous, torch.device(device))
    state.before_exit = context.leave
    links, progress = TimedLinks(context.links), context.progress
    group = TimedGroup(context.tensor_group)
    if device == "cpu" and group.size > 1:
        context = dataclasses.replace(context, tensor_group=group)
    context = dataclasses.replace(context, links=links)
    state.watch_waits(lambda: (group.seconds, links.waited_seconds))
    state.watch_progress(lambda: (progress.value, progress.where))
    options = ShardOptions(
        directory=replica.directory,
        dtype=replica.dtype,
        device=device,
        num_blocks=replica.num_blocks,
        block_size=replica.engine.block_size,
        deterministic=replica.engine.deterministic,
        allow_untested_gpu=replica.engine.allow_untested_gpu,
        quantization=replica.quantization,
    )
    shard = Shard.load(options, context, state.loaded)
    state.enter("warming")
    shard.warm_up()
    peaks = measure_peaks(torch.device(device), DTYPES[replica.dtype])
    state.measured(peaks.flops, peaks.memory_bytes)
    return ShardRunner(shard, links)


def namespace(replica: ReplicaSpec) -> str:
    """Name of this epoch's shared memory: known to its members, guessable by nobody else, short enough for macOS."""
    return f"argosy-{hashlib.blake2b(replica.secret, digest_size=6).hexdigest()}"


def _make_context(
    spec: WorkerSpec, state: WorkerState, wait_rendezvous: Callable[[float], str], device: torch.device
) -> ParallelContext:
    from model.parallel.collectives import connect_store, make_context, open_store, supported_kind

    replica, coordinates = spec.replica, spec.coordinates
    world_rank = coordinates.stage * replica.dims.tp + coordinates.tp_rank
    shard = cut_replica(replica, ModelConfig.from_checkpoint(replica.directory))[world_rank]
    store = None
    kind, _ = supported_kind(replica.collectives)
    if kind != "shared_memory" and replica.dims.world_size > 1:
        if world_rank == 0:
            store, address = open_store(spec.host, replica.dims.world_size, MEET_SECONDS)
            state.publish_rendezvous(address)
        else:
            store = connect_store(wait_rendezvous(MEET_SECONDS), MEET_SECONDS)
    return make_context(
        replica.collectives,
        shard,
        namespace=namespace(replica),
        store=store,
        host=spec.host,
        device=device,
        timeout_seconds=MEET_SECONDS,
    )


def _device(spec: WorkerSpec, num_visible_gpus: int) -> str:
    """Ray shows a rank only its own GPU; without Ray, ranks of one machine share out what they see."""
    if spec.replica.device == "cpu":
        return "cpu"
    if num_visible_gpus == 0:
        raise ValueError("device is cuda but this process sees no GPU; check the driver and CUDA_VISIBLE_DEVICES")
    world_rank = spec.coordinates.stage * spec.replica.dims.tp + spec.coordinates.tp_rank
    return f"cuda:{world_rank % num_visible_gpus}"


def _set_threads_before_import(num_threads: int) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(num_threads)
    # A waiting OpenMP thread burns the core that the other ranks of this host need: a step of two threads beside other
    # work took 585 ms with libgomp's own count and 122 ms with this one. What the operator has set stands.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _set_threads(num_threads: int) -> None:
    import torch

    torch.set_num_threads(num_threads)
    torch.set_num_interop_threads(1)
