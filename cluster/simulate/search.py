"""The load that a policy holds: the fastest replay of a trace at which goodput is still what was asked. Knows no fleet.

Goodput falls with load, though not strictly (other requests collide at another speed), so the search keeps a bracket of
one load that held and one that did not, and halves it until it is narrow.
"""

from __future__ import annotations

from collections.abc import Callable

GROWTH = 1.15
"""Step by which a bracket is looked for."""


def load_held(holds: Callable[[float], bool], guess: float, precision: float = 0.01) -> float:
    """The largest load known to hold, within a factor of `1 + precision` of one that does not.

    Args:
        holds: whether goodput at a load is high enough. Must be true near 0 and false at some load.
        guess: where to begin; a good one saves calls.
    """
    low, high = guess, guess
    if holds(guess):
        while holds(high := high * GROWTH):
            low = high
    else:
        while not holds(low := low / GROWTH):
            high = low
    while high > low * (1 + precision):
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
