"""Cuts a line of equal or unequal units into runs, one a rank or stage. Only numbers: no models, no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class PartitionError(ValueError):
    """The model cannot be cut that way; the message names the dimension, the sizes and a fix."""


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range `[start, end)`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


NOTHING = Span(0, 0)


def split_dim(name: str, size: int, weights: Sequence[float], quantum: int = 1) -> tuple[Span, ...]:
    """Cut `[0, size)` at multiples of `quantum` in proportion to `weights`, something for everyone.

    Raises:
        PartitionError: fewer than one quantum a rank.
    """
    units = math.ceil(size / quantum)
    if units < len(weights):
        raise PartitionError(
            f"{name}={size} in units of {quantum} gives {units} parts for {len(weights)} ranks; use tp <= {units}"
        )
    ends = [min(size, end * quantum) for end in itertools.accumulate(_deal(units, weights))]
    return tuple(Span(start, end) for start, end in itertools.pairwise([0, *ends]))


def _deal(units: int, weights: Sequence[float]) -> list[int]:
    """Whole units in proportion to weights, at least one each; with equal weights counts differ by at most one."""
    total = sum(weights)
    counts = [max(1, math.floor(units * weight / total)) for weight in weights]
    ranks = range(len(weights))
    while sum(counts) > units:
        counts[max((rank for rank in ranks if counts[rank] > 1), key=lambda rank: counts[rank] / weights[rank])] -= 1
    while sum(counts) < units:
        counts[min(ranks, key=lambda rank: (counts[rank] + 1) / weights[rank])] += 1
    return counts


def balanced_cuts(units: int, parts: int, cost: Callable[[int, int, int], float]) -> list[int] | None:
    """Cut `[0, units)` into `parts` non-empty runs: smallest possible largest cost, then a small sum of squares.

    `cost(part, start, end)` must not fall when a run grows to the left. Exact in the largest cost (dynamic programme
    over part and end); the sum of squares only breaks ties.

    Returns:
        The `parts + 1` cuts, both ends included; None if every way has a run of infinite cost.
    """
    unreachable = (math.inf, math.inf)
    best: list[tuple[float, float]] = [(0.0, 0.0)] + [unreachable] * units
    chosen: list[list[int]] = []
    for part in range(parts):
        following = [unreachable] * (units + 1)
        starts = [0] * (units + 1)
        for end in range(part + 1, units - (parts - part - 1) + 1):
            for start in range(end - 1, part - 1, -1):
                own = cost(part, start, end)
                if own > following[end][0]:
                    break
                candidate = (max(best[start][0], own), best[start][1] + own * own)
                if candidate < following[end]:
                    following[end], starts[end] = candidate, start
        best = following
        chosen.append(starts)
    if best[units] == unreachable:
        return None
    cuts = [units]
    for starts in reversed(chosen):
        cuts.append(starts[cuts[-1]])
    return cuts[::-1]
