"""Runs one function on every rank of a replica, each a thread of this process: cheap where the transport is not tested.

Sums are added in rank order, as the real groups do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.parallel.context import ParallelContext
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from model.parallel.progress import ProgressCounter

TIMEOUT_SECONDS = 60.0


class ThreadGroup:
    """The tensor ranks of one stage."""

    def __init__(self, rank: int, size: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, size
        self._table, self._barrier = table, barrier

    def _shown(self, value: Any) -> list[Any]:
        """What every rank showed in this operation."""
        self._table[self.rank] = value
        self._barrier.wait(TIMEOUT_SECONDS)
        shown = list(self._table)
        self._barrier.wait(TIMEOUT_SECONDS)
        return shown

    def all_reduce(self, x: Tensor) -> Tensor:
        parts = self._shown(x.clone())
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = self._shown(x.clone())
        assert [part.shape[-1] for part in parts] == list(sizes)
        return torch.cat(parts, -1)

    def all_to_all(self, rows_NH: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
        assert rows_NH.shape[0] == sum(counts[self.rank])
        parts = self._shown(rows_NH.clone())
        return torch.cat([part.split(list(row))[self.rank] for part, row in zip(parts, counts, strict=True)])

    def leave(self) -> None:
        self._barrier.abort()


class ThreadLinks:
    """Queues between the stages of one tensor rank."""

    def __init__(self, stage: int, forward: list[queue.Queue[Tensor]], back: queue.Queue[Any]) -> None:
        self._stage, self._forward, self._back = stage, forward, back

    def send(self, hidden_TH: Tensor) -> None:
        self._forward[self._stage].put(hidden_TH.clone())

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        hidden_TH = self._forward[self._stage - 1].get(timeout=TIMEOUT_SECONDS)
        assert hidden_TH.shape == (num_tokens, hidden_size)
        return hidden_TH

    def feed_back(self, token_ids: Any) -> None:
        self._back.put(np.array(token_ids, np.int32))

    def take_feed_back(self, count: int) -> Any:
        return self._back.get(timeout=TIMEOUT_SECONDS)

    def leave(self) -> None:
        """Nothing waits for long."""


def run_threads(
    config: ModelConfig,
    dims: ParallelDims,
    function: Callable[..., Any],
    *arguments: Any,
    quantum: int = 1,
    weights: Sequence[float] | None = None,
) -> list[Any]:
    """`function(context, *arguments)` on each rank; the results by world rank. A failed rank fails the test.

    `quantum` and `weights` are those of `partition`.
    """
    tables: list[list[Any]] = [[None] * dims.tp for _ in range(dims.pp)]
    barriers = [threading.Barrier(dims.tp) for _ in range(dims.pp)]
    forward: list[list[queue.Queue[Tensor]]] = [[queue.Queue() for _ in range(dims.pp)] for _ in range(dims.tp)]
    back: list[queue.Queue[Any]] = [queue.Queue() for _ in range(dims.tp)]
    results: list[Any] = [None] * dims.world_size
    failures: list[BaseException] = []

    def work(world_rank: int) -> None:
        shard = shards[world_rank]
        stage, rank = shard.coordinates.stage, shard.coordinates.tp_rank
        group = ThreadGroup(rank, dims.tp, tables[stage], barriers[stage])
        links = ThreadLinks(stage, forward[rank], back[rank])
        try:
            with torch.inference_mode():
                context = ParallelContext(shard, group, links, ProgressCounter())
                results[world_rank] = function(context, *arguments)
        except BaseException as error:
            failures.append(error)
            for barrier in barriers:
                barrier.abort()

    shards = partition(config, dims, quantum=quantum, weights=weights)
    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(dims.world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT_SECONDS)
    if failures:
        raise failures[0]
    return results
