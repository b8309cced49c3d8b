"""Runs sequences over a shard without an engine: whole prompts, chunks or single tokens a pass, rows in any company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from model.batch import Batch, SamplingRow
from model.parallel.context import ParallelContext, single_rank_context
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from model.quantization import Quantization
from model.sampling_params import SamplingParams
from model.shard import Shard, ShardOptions

GREEDY = SamplingParams(temperature=0.0)
UNKNOWN = -1
BLOCK_SIZE = 16


@dataclass
class Running:
    """One sequence: its tokens (UNKNOWN where another stage knows them) and how many are in the KV cache."""

    tokens: list[int]
    num_prompt: int
    params: SamplingParams
    choice: int
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.num_prompt :]


class Passes:
    """A shard and the sequences on it; blocks are handed out in order and never freed."""

    def __init__(self, shard: Shard, context: ParallelContext) -> None:
        self.shard, self.context = shard, context
        self._next_block = 0
        self.sequences: list[Running] = []

    @classmethod
    def load(
        cls,
        directory: Path,
        context: ParallelContext | None = None,
        num_blocks: int = 1024,
        quantization: Quantization = "none",
    ) -> Passes:
        context = context or one_rank(directory)
        chosen = options(directory, num_blocks, quantization)
        return cls(Shard.load(chosen, context, lambda loaded, total: None), context)

    def add(self, prompt: Sequence[int], params: SamplingParams = GREEDY, choice: int = 0) -> Running:
        running = Running(list(prompt), len(prompt), params, choice)
        self.sequences.append(running)
        return running

    def batch(self, rows: Sequence[tuple[Running, int]]) -> Batch:
        """The next `count` tokens of each sequence; a row samples if none of its tokens are left."""
        for running, count in rows:
            while len(running.blocks) * BLOCK_SIZE < running.computed + count:
                # Every other block, downwards: neighbours in a table are not neighbours in memory.
                running.blocks.append((self._next_block * 7) % 1021)
                self._next_block += 1
        tables = np.zeros((len(rows), max(len(running.blocks) for running, _ in rows)), np.int32)
        sampling = []
        for index, (running, count) in enumerate(rows):
            tables[index, : len(running.blocks)] = running.blocks
            if running.computed + count == len(running.tokens):
                sampling.append(SamplingRow(index, running.params, running.choice, len(running.answer)))
        spans = [range(running.computed, running.computed + count) for running, count in rows]
        counts = [count for _, count in rows]
        tokens = [running.tokens[i] for (running, _), span in zip(rows, spans, strict=True) for i in span]
        return Batch(
            token_ids=np.array(tokens, np.int32),
            positions=np.array([i for span in spans for i in span], np.int32),
            query_starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
            context_lengths=np.array([span.stop for span in spans], np.int32),
            block_tables=tables,
            sampling=tuple(sampling),
        )

    def step(self, rows: Sequence[tuple[Running, int]]) -> None:
        """One pass; sampled tokens are appended to their sequences on every stage that can know them."""
        batch, stages = self.batch(rows), self.context.shard
        sampled = self.shard.run(batch)
        tokens: list[int] = [UNKNOWN] * len(batch.sampling)
        if sampled is not None:
            tokens = sampled.token_ids.tolist()
            if not stages.is_first_stage:
                self.context.links.feed_back(sampled.token_ids)
        elif stages.is_first_stage:
            tokens = self.context.links.take_feed_back(len(batch.sampling)).tolist()
        for running, count in rows:
            running.computed += count
        for row, token in zip(batch.sampling, tokens, strict=True):
            rows[row.row][0].tokens.append(token)

    def decode(self, sequences: Sequence[Running], num_tokens: int) -> None:
        """Compute what is left of each sequence in one pass, then one token a pass until each answer is that long."""
        while any(len(running.answer) < num_tokens for running in sequences):
            self.step([(running, len(running.tokens) - running.computed) for running in sequences])


def options(directory: Path, num_blocks: int = 1024, quantization: Quantization = "none") -> ShardOptions:
    return ShardOptions(
        directory, "float32", "cpu", num_blocks, BLOCK_SIZE, deterministic=True, quantization=quantization
    )


def one_rank(directory: Path) -> ParallelContext:
    from model.config import ModelConfig

    return single_rank_context(partition(ModelConfig.from_checkpoint(directory), ParallelDims())[0])


def generate(
    context: ParallelContext, directory: str, prompts: list[list[int]], num_tokens: int, batch_rows: int
) -> list[list[int]]:
    """On any rank: greedy answers of all prompts, `batch_rows` at a time."""
    passes = Passes.load(Path(directory), context)
    for start in range(0, len(prompts), batch_rows):
        passes.decode([passes.add(prompt) for prompt in prompts[start : start + batch_rows]], num_tokens)
    return [running.answer for running in passes.sequences]
