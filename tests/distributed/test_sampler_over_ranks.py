"""A vocabulary split over ranks gives every rank the tokens that one rank with the whole vocabulary gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from model.batch import Sampled, SamplingRow
from model.parallel.context import ParallelContext, SingleRankGroup
from model.parallel.dims import ParallelDims
from model.parallel.partition import Span
from model.sampler import Sampler
from model.sampling_params import SamplingParams
from tests.support.ranks import run_ranks, tiny_config

VOCAB = tiny_config().vocab_size


def rows() -> tuple[SamplingRow, ...]:
    """Every way of sampling, several times."""
    history = np.arange(0, VOCAB, 3, dtype=np.int32)
    kinds: list[dict[str, Any]] = [
        {"params": SamplingParams(temperature=0.0)},
        {"params": SamplingParams(seed=5)},
        {"params": SamplingParams(seed=5, top_k=4), "top_logprobs": 5},
        {"params": SamplingParams(seed=6, top_p=0.7, temperature=1.3)},
        {"params": SamplingParams(temperature=0.0, repetition_penalty=1.9, frequency_penalty=0.3)},
        {"params": SamplingParams(seed=7, logit_bias={1: 3.0, VOCAB - 1: 4.0}), "top_logprobs": 0},
        {"params": SamplingParams(seed=8), "suppressed_token_ids": np.arange(0, VOCAB - 2, dtype=np.int32)},
        {"params": SamplingParams(seed=9), "mask": np.array([0, 0x10, 0, 0x80, 0], np.int32)},
    ]
    return tuple(
        SamplingRow(i, choice=i % 2, position=i, history=history, num_generated=20, **kinds[i % len(kinds)])
        for i in range(32)
    )


def outcome(sampled: Sampled) -> tuple[list[int], list[Any]]:
    return sampled.token_ids.tolist(), [
        entry and (round(entry.logprob, 4), entry.top_token_ids) for entry in sampled.logprobs
    ]


def sample_slice(context: ParallelContext, logits: np.ndarray[Any, Any]) -> tuple[list[int], list[Any]]:
    vocab = context.shard.vocab
    part = torch.from_numpy(logits[:, vocab.start : vocab.end].copy())
    return outcome(Sampler(vocab, context.tensor_group).sample(part, rows()))


@pytest.mark.parametrize("tp", [2, 3])
def test_ranks_agree_with_one(tp: int) -> None:
    logits = np.random.default_rng(4).normal(0, 3, (32, VOCAB)).astype(np.float32)
    logits[0, [3, VOCAB - 4]] = 40.0  # equal on the first and on the last rank
    logits[8, :] = np.nan
    whole = Sampler(Span(0, VOCAB), SingleRankGroup()).sample(torch.from_numpy(logits.copy()), rows())
    assert whole.token_ids[0] == 3
    results = run_ranks("shared_memory", ParallelDims(tp, 1), sample_slice, logits)
    assert results == [outcome(whole)] * tp
