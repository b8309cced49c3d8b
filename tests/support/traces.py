"""Holds a cut model against transformers: logits after each token of a prompt and of its answer. Ranks are threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import ModelConfig
from model.parallel.context import ParallelContext
from model.parallel.dims import ParallelDims
from tests.support.passes import Passes
from tests.support.thread_ranks import run_threads

PROMPT = [int(token) for token in np.random.default_rng(3).integers(0, 131, 37)]
NUM_DECODED = 32


def trace(context: ParallelContext, directory: str, chunk: int) -> tuple[list[int], list[np.ndarray]]:
    """On any rank: a greedy answer, and this rank's logits after each token of the prompt and of the answer.

    Every prefix of the prompt is a row of its own, taken `chunk` tokens a pass: rows of all lengths, whose windows end
    inside and outside of them. The longest is the one that is answered.
    """
    passes = Passes.load(Path(directory), context)
    logits: list[np.ndarray] = []
    forward = passes.shard.stage.forward

    def recording(batch: Any) -> Any:
        result = forward(batch)
        if context.shard.is_last_stage and batch.sampling:
            logits.append(result.numpy().copy())
        return result

    passes.shard.stage.forward = recording  # type: ignore[method-assign]
    prefixes = [passes.add(PROMPT[:length]) for length in range(1, len(PROMPT) + 1)]
    while unfinished := [running for running in prefixes if running.computed < running.num_prompt]:
        passes.step([(running, min(chunk, running.num_prompt - running.computed)) for running in unfinished])
    passes.decode(prefixes[-1:], NUM_DECODED)
    return prefixes[-1].answer, logits


def expected_logits(reference: Any, answer: list[int]) -> np.ndarray:
    """After each token of the prompt, and of the answer but for its last."""
    with torch.inference_mode():
        logits: np.ndarray = reference(torch.tensor([PROMPT + answer[:-1]])).logits[0].numpy()
    return logits


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_logits(
    directory: Path,
    reference: Any,
    cuts: Sequence[ParallelDims],
    chunks: Sequence[int],
    weights: Sequence[float] | None = None,
) -> None:
    """Fail unless every cut gives the reference's logits, so its greedy tokens too, and the same bits in chunks.

    Args:
        weights: of `partition`, for cuts of one size.
    """
    config = ModelConfig.from_checkpoint(directory)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = None
        for dims in cuts:
            in_one_pass = None
            for chunk in chunks:
                by_rank = run_threads(config, dims, trace, str(directory), chunk, weights=weights)
                results = by_rank[dims.tp * (dims.pp - 1) :]
                answers = [answer for answer, _ in results]
                assert all(answer == answers[0] for answer in answers)
                found = np.concatenate([np.concatenate(logits) for _, logits in results], axis=1)
                if expected is None:
                    expected = expected_logits(reference, answers[0])
                assert answers[0] == expected[len(PROMPT) - 1 :].argmax(-1).tolist(), (dims, chunk)
                assert found.shape == expected.shape
                assert relative_error(found, expected) <= 1e-4, (dims, chunk)
                in_one_pass = found if in_one_pass is None else in_one_pass
                assert np.array_equal(found, in_one_pass), f"{dims}: chunks of {chunk} tokens change bits"
    finally:
        torch.set_num_threads(threads)
