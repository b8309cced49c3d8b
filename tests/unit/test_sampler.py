"""Tokens are drawn from the right distribution, and depend on logits, parameters, seed, choice and position alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from model.batch import SamplingRow
from model.gumbel import gumbel_noise, philox
from model.parallel.context import SingleRankGroup
from model.parallel.partition import Span
from model.sampler import Sampler, _best_by_torch, cut_vocabulary
from model.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
VOCAB = 1000


def sampler(size: int = VOCAB) -> Sampler:
    return Sampler(Span(0, size), SingleRankGroup())


def logits(rows: int, size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def rows_of(params: SamplingParams, count: int, **changes: object) -> tuple[SamplingRow, ...]:
    row = replace(SamplingRow(0, params, choice=0, position=0), **changes)
    return tuple(replace(row, row=i) for i in range(count))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter: list[int], key: list[int], words: list[int]) -> None:
    """Known answers of the authors' Random123 library."""
    a, b, c, d = (torch.tensor([word]) for word in counter)
    low, high = (torch.tensor([word]) for word in key)
    assert [int(word) for word in philox((a, b, c, d), (low, high))] == words


def test_the_kernel_draws_with_the_noise_of_the_torch_operators() -> None:
    """Flat logits: the token with the largest noise wins. Seeds of all sizes, slices that start anywhere."""
    seeds = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1] * 10
    positions, choices = list(range(60)), [i % 3 for i in range(60)]
    drawn = tuple(
        SamplingRow(i, SamplingParams(seed=seed), choice, position)
        for i, (seed, choice, position) in enumerate(zip(seeds, choices, positions, strict=True))
    )
    for first, width in ((0, 1000), (37, 500), (640, 64)):
        noise = gumbel_noise(first, width, seeds, choices, positions, torch.device("cpu"))
        part = Sampler(Span(first, first + width), SingleRankGroup())
        scores, tokens = part._best(torch.zeros(60, width), first, drawn)
        np.testing.assert_array_equal(tokens, noise.argmax(-1).numpy() + first)
        np.testing.assert_allclose(scores, noise.max(-1).values.numpy(), rtol=1e-5)
        assert (_best_by_torch(torch.zeros(60, width), first, drawn)[1] == tokens).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    count = 40_000
    row = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5, -30.0, 1.5, 0.2, -0.3, 0.9]])
    drawn = tuple(SamplingRow(i, SamplingParams(temperature=temperature, seed=11), 0, i) for i in range(count))
    tokens = sampler(10).sample(row.repeat(count, 1), drawn).token_ids
    expected = torch.softmax(row[0] / temperature, 0).double().numpy() * count
    observed = np.bincount(tokens, minlength=10)
    likely = expected > 5
    chi_square = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 28  # 8 degrees of freedom, p = 0.0005; the seed is fixed
    assert observed[5] == 0


def test_seed_choice_and_position_change_the_token_and_company_does_not() -> None:
    flat = torch.zeros(1, VOCAB)
    base = SamplingRow(0, SamplingParams(seed=3), choice=0, position=5)
    others = [
        replace(base, params=SamplingParams(seed=4)),
        replace(base, choice=1),
        replace(base, position=6),
        replace(base, params=SamplingParams(seed=3 + 2**32)),
    ]
    tokens = [int(sampler().sample(flat.clone(), (row,)).token_ids[0]) for row in (base, *others)]
    assert len(set(tokens)) == 5
    together = (base, *others)
    batch = tuple(replace(row, row=i) for i, row in enumerate(together * 7))
    assert sampler().sample(flat.repeat(35, 1), batch).token_ids.tolist() == tokens * 7


def test_greedy_takes_the_first_of_equals_and_mixes_with_drawn_rows() -> None:
    values = logits(3)
    values[0, [400, 17, 999]] = 50.0
    rows = (*rows_of(GREEDY, 2), SamplingRow(2, SamplingParams(seed=1), 0, 0))
    alone = sampler().sample(values[2:].clone(), (replace(rows[2], row=0),)).token_ids[0]
    tokens = sampler().sample(values.clone(), rows).token_ids
    assert tokens.tolist() == [17, int(values[1].argmax()), alone]


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(top_k=5), SamplingParams(top_p=0.5)])
def test_rows_without_numbers_still_give_a_token(params: SamplingParams) -> None:
    for value in (float("nan"), float("-inf"), float("inf")):
        tokens = sampler().sample(torch.full((1, VOCAB), value), rows_of(params, 1)).token_ids
        assert 0 <= tokens[0] < VOCAB


@given(
    top_k=st.integers(0, 60),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
    temperature=st.floats(0.3, 2.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_cuts_keep_what_transformers_keeps(
    top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    row = logits(1, 400, seed)
    expected = reference.TemperatureLogitsWarper(temperature)(None, row.clone())
    if top_k:
        expected = reference.TopKLogitsWarper(top_k)(None, expected)
    if min_p:
        expected = reference.MinPLogitsWarper(min_p)(None, expected)
    if top_p < 1:
        expected = reference.TopPLogitsWarper(top_p)(None, expected)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    cut_vocabulary(row[0], params)
    kept, wanted = row[0].isfinite(), expected[0].isfinite()
    # Sums of probabilities that round to one side or the other of top_p may differ by their last token.
    assert int((kept != wanted).sum()) <= (1 if top_p < 1 else 0)


def test_top_p_looks_beyond_the_first_candidates() -> None:
    row = torch.zeros(2000)
    row[0] = 1.0
    cut_vocabulary(row, SamplingParams(top_p=0.9))
    assert row.isfinite().all()  # all others are equal, so none can be dropped before another
    row = -torch.arange(2000) * 0.001
    cut_vocabulary(row, SamplingParams(top_p=0.5))
    probabilities = torch.softmax(-torch.arange(2000) * 0.001, 0).cumsum(0)
    assert int(row.isfinite().sum()) == int((probabilities < 0.5).sum()) + 1


def test_drawn_tokens_stay_in_the_cut() -> None:
    values = logits(200)
    tokens = sampler().sample(values.clone(), rows_of(SamplingParams(top_k=3, temperature=2.0, seed=9), 200)).token_ids
    best = values.topk(3).indices
    assert all(int(token) in best[i].tolist() for i, token in enumerate(tokens))


def test_penalties_biases_and_bans() -> None:
    history = np.array([5, 5, 7, 9, 9, 9, 7], np.int32)  # the last four were generated
    params = SamplingParams(
        temperature=0.0,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        logit_bias={3: 2.0, 9: -1.0},
    )
    values = logits(1)
    mask = np.full(-(-VOCAB // 32), -1, np.int32)
    mask[0] &= ~(1 << 20)
    row = SamplingRow(
        0,
        params,
        0,
        0,
        history=history,
        num_generated=4,
        suppressed_token_ids=np.array([0, VOCAB - 1], np.int32),
        mask=mask,
    )
    expected = values[0].clone()
    for token in (5, 7, 9):
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    expected[9] -= 0.25 + 3 * 0.5
    expected[7] -= 0.25 + 0.5
    expected[3] += 2.0
    expected[9] -= 1.0
    expected[[0, VOCAB - 1, 20]] = float("-inf")
    edited = values.clone()
    sampler().sample(edited, (row,))
    torch.testing.assert_close(edited[0], expected)


def test_log_probabilities_are_of_the_unmodified_distribution() -> None:
    values = logits(2)
    biased = SamplingParams(temperature=0.7, seed=2, logit_bias={42: 100.0})
    rows = (SamplingRow(0, biased, 0, 0, top_logprobs=3), SamplingRow(1, biased, 0, 0))
    sampled = sampler().sample(values.clone(), rows)
    logprobs = torch.log_softmax(values[0], 0)
    first, second = sampled.logprobs
    assert second is None
    assert first is not None
    assert sampled.token_ids.tolist() == [42, 42]
    assert first.logprob == pytest.approx(float(logprobs[42]))
    assert first.top_token_ids == tuple(values[0].topk(3).indices.tolist())
    assert first.top_logprobs == pytest.approx(logprobs.topk(3).values.tolist())
