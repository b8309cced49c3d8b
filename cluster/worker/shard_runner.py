"""A shard as the step loop sees it, and how long it stood waiting. Imports torch: only `bootstrap` may import this."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from model.batch import Batch, Int32Array, Sampled
from model.parallel.context import PipelineLinks, TensorGroup
from model.shard import Shard


class ShardRunner:
    """A shard and its links, as the step loop wants them."""

    def __init__(self, shard: Shard, links: TimedLinks) -> None:
        self._shard = shard
        self._links = links

    def run(self, batch: Batch) -> Sampled | None:
        return self._shard.run(batch)

    def feed_back(self, token_ids: Int32Array) -> None:
        self._links.feed_back(token_ids)

    def take_feed_back(self, count: int) -> Int32Array:
        return self._links.take_feed_back(count)

    @property
    def waited_seconds(self) -> float:
        return self._links.waited_seconds


class TimedLinks:
    """Pipeline links that count how long this stage stood waiting for the one before."""

    def __init__(self, links: PipelineLinks) -> None:
        self._links = links
        self.send = links.send
        self.feed_back = links.feed_back
        self.take_feed_back = links.take_feed_back
        self.leave = links.leave
        self.waited_seconds = 0.0

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        started = time.perf_counter()
        hidden_TH = self._links.receive(num_tokens, hidden_size, dtype)
        self.waited_seconds += time.perf_counter() - started
        return hidden_TH


class TimedGroup:
    """A tensor group that counts how long this rank spent in collectives, mostly waiting for slower ranks. CPU only:
    on a GPU the host's time says nothing of the device's."""

    def __init__(self, group: TensorGroup) -> None:
        self._group = group
        self.rank, self.size = group.rank, group.size
        self.leave = group.leave
        self.seconds = 0.0

    def all_reduce(self, x: Tensor) -> Tensor:
        started = time.perf_counter()
        x = self._group.all_reduce(x)
        self.seconds += time.perf_counter() - started
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        started = time.perf_counter()
        x = self._group.all_gather(x, sizes)
        self.seconds += time.perf_counter() - started
        return x

    def all_to_all(self, rows_NH: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
        started = time.perf_counter()
        rows_NH = self._group.all_to_all(rows_NH, counts)
        self.seconds += time.perf_counter() - started
        return rows_NH
