"""How long an all-reduce takes over shared memory and over gloo's loopback, by turns in the same processes.

    python -m benchmarks.bench_collectives [--ranks 2 4] [--seconds 2]

Prints one line per number of ranks and size: medians in microseconds on rank 0 and their ratio. 1x576 is one token of
SmolLM2-135M in decode, 512x576 a prefill chunk; a step has two all-reduces a layer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
import uuid
from multiprocessing.connection import Connection

import torch

from model.config import ModelConfig, RopeConfig
from model.parallel.collectives import Kind, connect_store, make_context, open_store, supported_kind
from model.parallel.context import TensorGroup
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition

KINDS: tuple[Kind, ...] = ("shared_memory", "gloo")
SHAPES = ((1, 576), (512, 576))
_TIMEOUT_SECONDS = 60.0
_TURNS = 5
_HOST = "127.0.0.1"

Medians = dict[tuple[tuple[int, int], str], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="measured time for each kind, size and number of ranks"
    )
    arguments = parser.parse_args()
    _, reason = supported_kind("shared_memory")
    if reason:
        raise SystemExit(reason)
    print(f"{platform.machine()}, {os.cpu_count()} logical CPUs, torch {torch.__version__}; medians in microseconds\n")
    print(f"{'ranks':>5}  {'tensor':>9}  {'shared memory':>13}  {'gloo':>9}  {'ratio':>6}")
    for num_ranks in arguments.ranks:
        medians = measure(num_ranks, arguments.seconds)
        for shape in SHAPES:
            ours, theirs = (medians[shape, kind] * 1e6 for kind in KINDS)
            size = f"{shape[0]}x{shape[1]}"
            print(f"{num_ranks:>5}  {size:>9}  {ours:>13.0f}  {theirs:>9.0f}  {theirs / ours:>5.1f}x")


def measure(num_ranks: int, seconds: float) -> Medians:
    """Median seconds on rank 0 of one all-reduce in place, by size and kind."""
    processes = multiprocessing.get_context("spawn")
    namespace = uuid.uuid4().hex
    ends = [processes.Pipe() for _ in range(num_ranks)]
    ranks = [
        processes.Process(target=_rank, args=(namespace, rank, num_ranks, seconds, ends[rank][1]), daemon=True)
        for rank in range(num_ranks)
    ]
    for rank in ranks:
        rank.start()
    address = ends[0][0].recv()
    for end, _ in ends[1:]:
        end.send(address)
    medians: Medians = ends[0][0].recv()
    for rank in ranks:
        rank.join()
    return medians


def _rank(namespace: str, rank: int, num_ranks: int, seconds: float, parent: Connection) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        store, address = open_store(_HOST, num_ranks, _TIMEOUT_SECONDS)
        parent.send(address)
    else:
        store = connect_store(parent.recv(), _TIMEOUT_SECONDS)
    shard = partition(_CONFIG, ParallelDims(tp=num_ranks))[rank]
    groups: dict[str, TensorGroup] = {
        kind: make_context(
            kind,
            shard,
            namespace=namespace,
            device=torch.device("cpu"),
            timeout_seconds=_TIMEOUT_SECONDS,
            store=store,
            host=_HOST,
        ).tensor_group
        for kind in KINDS
    }
    medians: Medians = {}
    for shape in SHAPES:
        samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(_TURNS):
            for kind, group in groups.items():
                samples[kind] += _timed(group, shape, seconds / _TURNS)
        medians.update({(shape, kind): statistics.median(samples[kind]) for kind in KINDS})
    if rank == 0:
        parent.send(medians)
    groups["gloo"].all_reduce(torch.zeros(1))  # no rank takes the store or its sockets away from the others


def _timed(group: TensorGroup, shape: tuple[int, int], seconds: float) -> list[float]:
    """Seconds of each all-reduce. Rank 0 keeps the time, so that all ranks stop after the same one."""
    x = torch.zeros(shape)
    samples = []
    running = torch.ones(1)
    end = time.perf_counter() + seconds
    while running.item():
        for _ in range(20):
            start = time.perf_counter()
            x = group.all_reduce(x)
            samples.append(time.perf_counter() - start)
        more = group.rank == 0 and time.perf_counter() < end
        running = group.all_reduce(torch.tensor([float(more)]))
    return samples


_CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    context_length=8192,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
)

if __name__ == "__main__":
    main()
