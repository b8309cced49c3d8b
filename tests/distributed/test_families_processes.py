"""Rows that go from every rank to every rank, and experts over ranks, on real processes and transports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.layers.moe import sum_over_experts
from model.parallel.context import ParallelContext
from model.parallel.dims import ParallelDims
from tests.support.passes import generate, one_rank
from tests.support.ranks import run_ranks
from tests.support.tiny_families import save_family

WIDTH = 3
COUNTS = [
    [[0, 2, 1], [3, 1, 0], [0, 0, 0]],
    [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    [[9, 150_000, 1], [0, 2, 130_000], [1, 0, 7]],  # more than a shared slot holds
]


def rows(sender: int, receiver: int, count: int) -> torch.Tensor:
    numbers = torch.arange(count, dtype=torch.float32)
    return torch.stack((torch.full_like(numbers, sender), torch.full_like(numbers, receiver), numbers), 1)


def exchange(context: ParallelContext, cases: list[list[list[int]]]) -> list[np.ndarray]:
    rank = context.tensor_group.rank
    return [
        context.tensor_group.all_to_all(
            torch.cat([rows(rank, receiver, count) for receiver, count in enumerate(counts[rank])]), counts
        ).numpy()
        for counts in cases
    ]


@pytest.mark.parametrize("kind", ["shared_memory", "gloo"])
def test_every_row_arrives_in_the_order_of_senders(kind: str) -> None:
    by_rank = run_ranks(kind, ParallelDims(tp=3), exchange, COUNTS)
    for receiver, received in enumerate(by_rank):
        for counts, found in zip(COUNTS, received, strict=True):
            expected = [rows(sender, receiver, counts[sender][receiver]) for sender in range(3)]
            np.testing.assert_array_equal(found, torch.cat(expected).numpy())


def disagree(context: ParallelContext) -> None:
    """Ranks with different ideas of who sends what must not take each other's rows for their own."""
    rank = context.tensor_group.rank
    counts = [[1, 1], [1, 1 + rank]]
    context.tensor_group.all_to_all(torch.ones(sum(counts[rank]), WIDTH), counts)


def test_ranks_that_disagree_on_counts_fail() -> None:
    with pytest.raises(AssertionError, match="out of step"):
        run_ranks("shared_memory", ParallelDims(tp=2), disagree)


def sum_sparse(context: ParallelContext, parts: np.ndarray, sent: np.ndarray) -> np.ndarray:
    own = torch.from_numpy(parts[context.tensor_group.rank])
    return sum_over_experts(own, torch.from_numpy(sent), context.tensor_group).numpy()


@pytest.mark.parametrize("tokens", [1, 7])
def test_sparse_sums_equal_dense_ones_in_rank_order(tokens: int) -> None:
    generator = np.random.default_rng(tokens)
    sent = generator.random((tokens, 3)) < 0.5
    parts = generator.standard_normal((3, tokens, 5), np.float32) * sent.T[:, :, None]
    expected = (parts[0] + parts[1]) + parts[2]
    for found in run_ranks("shared_memory", ParallelDims(tp=3), sum_sparse, parts, sent):
        np.testing.assert_array_equal(found, expected)


def test_experts_over_processes_answer_as_one_process(tmp_path: Path) -> None:
    save_family(tmp_path, "Qwen3Moe")
    config = ModelConfig.from_checkpoint(tmp_path)
    generator = np.random.default_rng(2)
    prompts = [generator.integers(0, config.vocab_size, length).tolist() for length in (5, 30)]
    expected = generate(one_rank(tmp_path), str(tmp_path), prompts, 16, 2)
    dims = ParallelDims(2, 1, 2)
    for answers in run_ranks("shared_memory", dims, generate, str(tmp_path), prompts, 16, 1, config=config):
        assert answers == expected
