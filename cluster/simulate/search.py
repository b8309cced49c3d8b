"""The load that a policy holds: the fastest replay of a trace at which goodput is still what was asked. Knows no fleet.

Goodput falls with load, but not steadily: other requests collide at another speed, and a policy may fail at one load
and hold at a higher one. So a policy is held to the highest load at which it was seen to hold: loads are tried upwards
until several in a row failed, and only the gap between the last success and the failure above it is halved.
"""

from __future__ import annotations

from collections.abc import Callable

GROWTH = 1.06
"""Step up from one load tried to the next."""
DESCENT = 1.15
"""Step down, while none was seen to hold."""
PATIENCE = 3
"""So many failures in a row, and no higher load is tried."""
LEAST_SHARE = 0.02
"""Of the first guess: whoever does not hold this load holds none."""


def load_held(holds: Callable[[float], bool], guess: float, precision: float = 0.01) -> float:
    """The highest load seen to hold, within a factor of `1 + precision` of one that does not; 0 if none does.

    Args:
        holds: whether goodput at a load is high enough. Must be false at some load and above.
        guess: where to begin; a good one saves calls.
    """
    low, high = _climb(holds, guess), guess
    if low:
        high = low * GROWTH
    while not low:
        load = high / DESCENT
        if load < guess * LEAST_SHARE:
            return 0.0
        low, high = (load, high) if holds(load) else (0.0, load)
    while high > low * (1 + precision):
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _climb(holds: Callable[[float], bool], load: float) -> float:
    """The highest load that holds among `load` and its multiples; 0 if the first `PATIENCE` of them fail."""
    best, failures = 0.0, 0
    while failures < PATIENCE:
        if holds(load):
            best, failures = load, 0
        else:
            failures += 1
        load *= GROWTH
    return best
