"""A stand-in for a shard whose next token is a hash of everything that attention would read.

It keeps token ids where a model keeps keys and values and finds them again through the block table, so a wrong block,
position, slot or neighbour changes the answer. What a request must get is computed without any of that by `answer`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence

import numpy as np

from cluster.launch import WorkerSpec
from cluster.worker.bootstrap import namespace
from cluster.worker.state import WorkerState
from model.batch import Batch, Sampled, SamplingRow, TokenLogprobs
from model.config import ModelConfig

POISON_TOKEN = 998
"""A pass that reads this token kills its process, as a native crash would. Never generated."""


HANGING_TOKEN = 999
"""A pass that reads this token never ends, although its process is well. Never generated."""


def next_token(context: Sequence[int], seed: int, choice: int, position: int) -> int:
    """What the fake answers to a context."""
    seen = np.array([seed % 2**63, choice, position, *context], np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(seen, digest_size=4).digest(), "little") % POISON_TOKEN


def answer(prompt: Sequence[int], num_tokens: int, *, seed: int = 0, choice: int = 0) -> list[int]:
    """The tokens that a request must get, from the definition alone."""
    tokens: list[int] = []
    for position in range(num_tokens):
        tokens.append(next_token([*prompt, *tokens], seed, choice, position))
    return tokens


class PagedFake:
    """A `Runner` without a model."""

    def __init__(self, spec: WorkerSpec, links: object, pass_seconds: float) -> None:
        replica = spec.replica
        self._block_size = replica.engine.block_size
        self._memory = np.full((replica.num_blocks, self._block_size), -1, np.int64)
        self._is_first = spec.coordinates.stage == 0
        self._is_last = spec.coordinates.stage == replica.dims.pp - 1
        self._links = links
        self._pass_seconds = pass_seconds
        self.progress = 0
        self.waited_seconds = 0.0

    def run(self, batch: Batch) -> Sampled | None:
        if self._pass_seconds:
            time.sleep(self._pass_seconds)
        self.progress += 1
        for source, target in batch.block_copies.tolist():
            self._memory[target] = self._memory[source]
        tokens = batch.token_ids if self._is_first else self._receive(batch.num_tokens)
        if POISON_TOKEN in tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGING_TOKEN in tokens:
            time.sleep(1000)
        rows = np.repeat(np.arange(batch.num_rows), np.diff(batch.query_starts))
        blocks = batch.block_tables[rows, batch.positions // self._block_size]
        self._memory[blocks, batch.positions % self._block_size] = tokens
        if not self._is_last:
            self._send(tokens)
            return None
        drawn = [self._draw(batch, row) for row in batch.sampling]
        return Sampled(
            token_ids=np.array(drawn, np.int32), logprobs=tuple(TokenLogprobs(-float(token)) for token in drawn)
        )

    def feed_back(self, token_ids: np.ndarray) -> None:
        self._links.feed_back(token_ids)

    def take_feed_back(self, count: int) -> np.ndarray:
        return self._links.take_feed_back(count)

    def _draw(self, batch: Batch, row: SamplingRow) -> int:
        length = int(batch.context_lengths[row.row])
        context = self._memory[batch.block_tables[row.row]].reshape(-1)[:length].tolist()
        return next_token(context, row.params.seed, row.choice, row.position)

    def _send(self, tokens: np.ndarray) -> None:
        import torch

        self._links.send(torch.from_numpy(tokens.astype(np.float32)).reshape(-1, 1))

    def _receive(self, num_tokens: int) -> np.ndarray:
        return self._links.receive(num_tokens, 1).numpy().reshape(-1).astype(np.int64)


def load_fake(
    spec: WorkerSpec, state: WorkerState, wait_rendezvous: Callable[[float], str], *, pass_seconds: float
) -> PagedFake:
    """The bootstrap that `WorkerActor` takes in place of the real one. Only pipelines need torch."""
    state.enter("loading")
    state.loaded(1, 1)
    links: object = None
    if spec.replica.dims.pp > 1:
        import torch

        from model.parallel.collectives import make_context
        from model.parallel.partition import partition

        dims, at = spec.replica.dims, spec.coordinates
        shard = partition(ModelConfig.from_checkpoint(spec.replica.directory), dims)[at.stage * dims.tp + at.tp_rank]
        context = make_context(
            "shared_memory", shard, namespace=namespace(spec.replica), device=torch.device("cpu"), timeout_seconds=60
        )
        state.before_exit = context.leave
        links = context.links
    runner = PagedFake(spec, links, pass_seconds)
    state.watch_progress(lambda: (runner.progress, "pretend"))
    state.measured(1e9, 1e9)
    return runner
