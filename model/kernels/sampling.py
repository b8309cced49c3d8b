"""The best token of each row of logits, with or without Gumbel noise. Knows addresses, no requests.

argmax(logit / temperature - log(-log(1 - v))), v uniform in (0, 1), draws from the softmax (Gumbel, 1954; Maddison et
al., 2014). v comes from a counter-based generator, Philox 4x32-10 (Salmon et al., 2011), keyed by the seed and counted
by token, position and choice: it depends on nothing else, so a row may be cut over ranks, batched or replayed at will.

Token t takes output t % 64 // 16 of the counter (t // 64 * 16 + t % 16, position, choice, STREAM).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from model.kernels.compile import kernel
from model.kernels.memory import float32_at, int64_at, put_float32, put_int32
from model.kernels.threads import fork_join
from model.kernels.vector import (
    LANES,
    drop_outside,
    lane,
    load_range,
    log,
    log_complement,
    maximum,
    multiply,
    splat,
    subtract,
)
from model.kernels.words import complement, philox, sequence, splat_word, to_unit, where_greater, word_lane

STREAM = 0x47756D62
"""Last word of the counter: keeps these numbers apart from other uses of a seed."""
_GROUP = 4 * LANES
"""Tokens that share a vector of counters."""
_NEVER = np.float32(-math.inf)


class Draws(NamedTuple):
    """How each row is drawn: arrays by address, one element a row."""

    inverse_temperatures: int
    """float32; 0 for the most probable token, without noise."""
    seeds: int
    """int64"""
    choices: int
    """int64"""
    positions: int
    """int64"""


@kernel
def _consider(
    best: Any, best_ids: Any, row: int, base: int, first: int, last: int, factor: float, word: Any, noisy: bool
) -> Any:
    """Compare the sixteen tokens from `base`, of which [first, last) exist at row[0...], with the best so far."""
    low, high = first - base, last - base
    score = multiply(load_range(row + (base - first) * 4, low, high), splat(np.float32(factor)))
    if noisy:
        exponential = subtract(splat(np.float32(0.0)), log_complement(to_unit(word), to_unit(complement(word))))
        score = subtract(score, log(exponential))
    score = drop_outside(score, low, high)
    return maximum(score, best), where_greater(score, best, sequence(base), best_ids)


@kernel
def _best_of_row(row: int, first: int, last: int, factor: float, seed: int, choice: int, position: int) -> Any:
    """Score and id of the best of tokens [first, last), the lowest id among equals; `first` if none compares."""
    best, best_ids = splat(_NEVER), splat_word(first)
    noisy = factor > 0
    used = factor if noisy else 1.0
    a = b = c = d = splat_word(0)
    for base in range(first // _GROUP * _GROUP, last, _GROUP):
        if noisy:
            a, b, c, d = philox(sequence(base // _GROUP * LANES), position, choice, STREAM, seed)
        best, best_ids = _consider(best, best_ids, row, base, first, last, used, a, noisy)
        best, best_ids = _consider(best, best_ids, row, base + LANES, first, last, used, b, noisy)
        best, best_ids = _consider(best, best_ids, row, base + 2 * LANES, first, last, used, c, noisy)
        best, best_ids = _consider(best, best_ids, row, base + 3 * LANES, first, last, used, d, noisy)
    score, token = lane(best, 0), word_lane(best_ids, 0)
    for i in range(1, LANES):
        value, index = lane(best, i), word_lane(best_ids, i)
        if value > score or (value == score and index < token):
            score, token = value, index
    return score, token


@kernel
def _choose_part(
    thread: int, threads: int, logits: int, rows: int, width: int, first: int, draws: Draws, scores: int, ids: int
) -> None:
    for i in range(rows * thread // threads, rows * (thread + 1) // threads):
        score, token = _best_of_row(
            logits + i * width * 4,
            first,
            first + width,
            float32_at(draws.inverse_temperatures, i),
            int64_at(draws.seeds, i),
            int64_at(draws.choices, i),
            int64_at(draws.positions, i),
        )
        put_float32(scores, i, score)
        put_int32(ids, i, token)


@kernel
def choose(threads: int, logits: int, rows: int, width: int, first: int, draws: Draws, scores: int, ids: int) -> None:
    """For each row of logits [rows, width], whose columns are tokens from `first`: the best score and its token.

    Writes scores (float32 [rows]) and ids (int32 [rows]).
    """
    fork_join(_choose_part, max(1, min(threads, rows)), (logits, rows, width, first, draws, scores, ids))
