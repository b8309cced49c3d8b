"""A row's logits have the same bits alone, in company, in chunks, token by token, and with any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.kernels import matmul
from tests.support.passes import Passes, Running
from tests.support.tiny_llama import save_tiny

PROMPT = np.random.default_rng(5).integers(0, 320, 301).tolist()
"""Longer than a segment of the attention kernel, and no multiple of anything."""


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny(directory)
    return directory


def last_logits(passes: Passes, rows: list[tuple[Running, int]]) -> torch.Tensor:
    """One pass; logits of the rows that sample. Nothing is sampled."""
    batch = passes.batch(rows)
    with torch.inference_mode():
        logits = passes.shard.stage.forward(batch).clone()
    for running, count in rows:
        running.computed += count
    return logits


@pytest.fixture(scope="module")
def alone(directory: Path) -> torch.Tensor:
    passes = Passes.load(directory)
    return last_logits(passes, [(passes.add(PROMPT), len(PROMPT))])[0]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_in_company(directory: Path, alone: torch.Tensor, num_threads: int, threads: Callable[[int], None]) -> None:
    threads(num_threads)
    passes = Passes.load(directory)
    generator = np.random.default_rng(6)
    company = [passes.add(generator.integers(0, 320, length).tolist()) for length in generator.integers(1, 60, 31)]
    company.insert(17, passes.add(PROMPT))
    logits = last_logits(passes, [(running, len(running.tokens)) for running in company])
    assert torch.equal(logits[17], alone)


@pytest.mark.parametrize("chunk", [1, 7, 16, 100, 300])
def test_in_chunks(directory: Path, alone: torch.Tensor, chunk: int) -> None:
    passes = Passes.load(directory)
    running = passes.add(PROMPT)
    while running.computed < len(PROMPT):
        logits = (
            last_logits(passes, [(running, min(chunk, len(PROMPT) - running.computed))])
            if (running.computed + chunk >= len(PROMPT))
            else _advance(passes, running, chunk)
        )
    assert torch.equal(logits[0], alone)


def _advance(passes: Passes, running: Running, count: int) -> torch.Tensor:
    passes.step([(running, count)])
    return torch.empty(0)


def test_decode_in_company_equals_replay(directory: Path) -> None:
    """What a continuation relies on: tokens computed one by one among others, then again as one prompt."""
    passes = Passes.load(directory)
    generator = np.random.default_rng(7)
    company = [passes.add(generator.integers(0, 320, length).tolist()) for length in (3, 250, 40, 17)]
    passes.decode(company, 20)
    for running in company:
        decoded = last_logits(passes, [(running, 1)])
        replay = passes.add(running.tokens)
        assert torch.equal(last_logits(passes, [(replay, len(replay.tokens))]), decoded)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("out_features", "in_features"), [(960, 576), (640, 576), (576, 1536), (576, 512), (77, 33)])
def test_products_of_any_height(out_features: int, in_features: int, num_threads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(512, in_features, generator=generator)
    weight = torch.randn(out_features, in_features, generator=generator)
    packed, bias = matmul.pack(weight), matmul.pack_bias(None, out_features)
    scratch = torch.empty(matmul.scratch_elements(num_threads))

    def product(rows: int) -> torch.Tensor:
        y = torch.full((rows, out_features), torch.nan)
        pointers = [tensor.data_ptr() for tensor in (x, packed, bias, y, scratch)]
        matmul.product(num_threads, *pointers, rows, in_features, out_features)
        return y

    whole = product(512)
    torch.testing.assert_close(whole, x @ weight.T, rtol=1e-4, atol=1e-4)
    for rows in [*range(1, 34), 63, 95, 96, 97, 128, 255, 300, 511]:
        assert torch.equal(product(rows), whole[:rows]), rows
