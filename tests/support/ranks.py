"""Runs one function on every rank of a replica, each a plain process with its context, and gathers what they return."""

from __future__ import annotations

import multiprocessing
import traceback
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from model.config import ModelConfig, RopeConfig
from model.parallel.dims import ParallelDims
from model.parallel.partition import RankShard, partition

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "model.parallel.collectives"])


def tiny_config(**changes: Any) -> ModelConfig:
    """A Llama with uneven sizes: 9 query heads on 3 KV heads, as SmolLM2-135M."""
    fields: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 131,
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_layers": 4,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 4,
        "context_length": 64,
        "rms_norm_eps": 1e-5,
        "rope": RopeConfig(),
        "tie_word_embeddings": True,
    }
    return ModelConfig(**(fields | changes))


class Ranks:
    """The processes of one replica while a function runs on them, forked from a server that has imported torch."""

    def __init__(
        self,
        kind: str,
        dims: ParallelDims,
        function: Callable[..., Any],
        *arguments: Any,
        timeout_seconds: float = 20.0,
        config: ModelConfig | None = None,
    ) -> None:
        """Start `function(context, *arguments)` on each rank; it must be importable and return arrays, not tensors."""
        self._results: list[Connection] = []
        self.processes = []
        # Kept open: a rank stays, for the sake of its peers, until this end closes.
        self._store_ends = store_ends = [_processes.Pipe() for _ in range(dims.world_size)]
        namespace = uuid.uuid4().hex
        for shard, (_, store_end) in zip(partition(config or tiny_config(), dims), store_ends, strict=True):
            receiver, sender = _processes.Pipe(duplex=False)
            process = _processes.Process(
                target=_rank_main,
                args=(kind, shard, namespace, timeout_seconds, store_end, sender, function, arguments),
                daemon=True,
            )
            process.start()
            sender.close()
            self._results.append(receiver)
            self.processes.append(process)
        if kind != "shared_memory" and dims.world_size > 1:
            address = store_ends[0][0].recv()
            for end, _ in store_ends[1:]:
                end.send(address)

    def outcome(self, rank: int, wait_seconds: float = 60.0) -> tuple[Any, str | None]:
        """What the rank returned, and its traceback if it raised.

        Raises:
            EOFError: the process died.
            TimeoutError: it is still running.
        """
        if not self._results[rank].poll(wait_seconds):
            raise TimeoutError(f"rank {rank} is still running after {wait_seconds} s")
        result: tuple[Any, str | None] = self._results[rank].recv()
        return result

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run_ranks(
    kind: str, dims: ParallelDims, function: Callable[..., Any], *arguments: Any, **options: Any
) -> list[Any]:
    """`function(context, *arguments)` on each rank; the results by world rank. A failed rank fails the test."""
    with Ranks(kind, dims, function, *arguments, **options) as ranks:
        outcomes = [ranks.outcome(rank) for rank in range(dims.world_size)]
    failures = [f"rank {rank}:\n{failure}" for rank, (_, failure) in enumerate(outcomes) if failure is not None]
    assert not failures, "\n".join(failures)
    return [result for result, _ in outcomes]


def _rank_main(
    kind: Any,
    shard: RankShard,
    namespace: str,
    timeout_seconds: float,
    store_end: Connection,
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    from model.parallel.collectives import connect_store, make_context, open_store

    torch.set_num_threads(1)
    store = None
    outcome: tuple[Any, str | None]
    world_rank = shard.coordinates.stage * shard.dims.tp + shard.coordinates.tp_rank
    if kind != "shared_memory" and shard.dims.world_size > 1:
        if world_rank == 0:
            store, address = open_store("127.0.0.1", shard.dims.world_size, timeout_seconds)
            store_end.send(address)
        else:
            store = connect_store(store_end.recv(), timeout_seconds)
    try:
        context = make_context(
            kind,
            shard,
            namespace=namespace,
            device=torch.device("cpu"),
            timeout_seconds=timeout_seconds,
            store=store,
            host="127.0.0.1",
        )
        with torch.inference_mode():
            outcome = (function(context, *arguments), None)
    except Exception:
        outcome = (None, traceback.format_exc())
    sender.send(outcome)
    store_end.poll(600)  # peers may still read from this rank, or from its store
