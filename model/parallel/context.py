"""What a shard may ask of the other ranks of its replica: sums and gathers in its stage, hand-overs between stages.

Knows the interfaces and the trivial one-rank forms; `collectives` makes those that span processes.
Shape legend: T packed tokens, H hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.parallel.partition import RankShard
from model.parallel.progress import CollectiveError, ProgressCounter

Int32Array = npt.NDArray[np.int32]


class TensorGroup(Protocol):
    """The ranks of one stage. Every rank must call the same operations in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, the same bits on every rank. May work in place; use what is returned.

        Raises:
            CollectiveError: a peer is gone, failed or did not arrive in time (`CollectiveTimeout`).
        """
        ...

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Join along the last dimension in rank order; `sizes[r]` is the last dimension of rank r's `x`.

        Raises:
            CollectiveError: as for `all_reduce`.
        """
        ...

    def all_to_all(self, rows_NH: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
        """Send each rank its rows; return those sent to this rank, by sender in rank order.

        `counts[i][j]` rows go from rank i to rank j, the same on every rank; `rows_NH` holds this rank's by receiver.

        Raises:
            CollectiveError: as for `all_reduce`.
        """
        ...

    def leave(self) -> None:
        """This rank will not come again: what waits for it should fail now, not at its timeout. Safe in any state."""
        ...


class PipelineLinks(Protocol):
    """The same tensor rank of the other stages. Transfers arrive in the order in which they were sent."""

    def send(self, hidden_TH: Tensor) -> None:
        """Hand hidden states to the next stage. Returns once `hidden_TH` may be reused, maybe before they are read."""
        ...

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Hidden states [num_tokens, hidden_size] of the previous stage."""
        ...

    def feed_back(self, token_ids: Int32Array) -> None:
        """Hand sampled tokens from the last stage to the first."""
        ...

    def take_feed_back(self, count: int) -> Int32Array:
        """On the first stage: the next `count` tokens handed over, by one `feed_back` of that many."""
        ...

    def leave(self) -> None:
        """See `TensorGroup.leave`."""
        ...


def check_sizes(x: Tensor, sizes: Sequence[int], rank: int, size: int) -> None:
    """Refuse arguments of `all_gather` that do not fit each other.

    Raises:
        ValueError: `sizes` has not `size` entries, or this rank's is not `x`'s last dimension.
    """
    if len(sizes) != size or x.shape[-1] != sizes[rank]:
        raise ValueError(f"sizes={list(sizes)} do not fit x of {list(x.shape)} on rank {rank} of {size}")


class SingleRankGroup:
    """A tensor group of one: sums and gathers are what they are given."""

    rank = 0
    size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return x

    def all_to_all(self, rows_NH: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
        return rows_NH

    def leave(self) -> None:
        """Nobody waits."""


@dataclass(slots=True)
class SingleStageLinks:
    """A pipeline of one stage: it has no neighbours, and hands sampled tokens to itself."""

    _fed_back: deque[Int32Array] = field(default_factory=deque)

    def send(self, hidden_TH: Tensor) -> None:
        raise CollectiveError("the only stage has no next stage to send to")

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        raise CollectiveError("the only stage has no previous stage to receive from")

    def feed_back(self, token_ids: Int32Array) -> None:
        self._fed_back.append(token_ids.astype(np.int32, copy=True))

    def take_feed_back(self, count: int) -> Int32Array:
        if not self._fed_back or len(self._fed_back[0]) != count:
            held = len(self._fed_back[0]) if self._fed_back else "none"
            raise CollectiveError(f"{count} fed back tokens were asked for, the next hand-over holds {held}")
        return self._fed_back.popleft()

    def leave(self) -> None:
        """Nobody waits."""


@dataclass(frozen=True, slots=True)
class ParallelContext:
    """Everything a shard knows about its place among the ranks of its replica."""

    shard: RankShard
    tensor_group: TensorGroup
    links: PipelineLinks
    progress: ProgressCounter

    def leave(self) -> None:
        """Call before the process ends, whatever the reason."""
        self.tensor_group.leave()
        self.links.leave()


def single_rank_context(shard: RankShard, progress: ProgressCounter | None = None) -> ParallelContext:
    """The context of a replica of one rank: no processes, no rendezvous."""
    return ParallelContext(shard, SingleRankGroup(), SingleStageLinks(), progress or ProgressCounter())
