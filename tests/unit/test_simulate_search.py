"""The search for the load that a policy holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.simulate.search import load_held


@pytest.mark.parametrize("limit", [0.3, 0.97, 1.0, 1.7, 12.0])
def test_a_steady_limit_is_found(limit: float) -> None:
    held = load_held(lambda load: load <= limit, 1.0, precision=0.01)
    assert limit / 1.01 <= held <= limit


def _fails_between(low: float, high: float, limit: float) -> Callable[[float], bool]:
    return lambda load: load <= limit and not low < load < high


def test_a_gap_below_the_limit_hides_nothing() -> None:
    # As seen of one policy: 86 % at 1, 93 % at 3. The guess falls into the gap's upper end, then into its middle.
    assert 3.9 <= load_held(_fails_between(0.9, 1.6, 4.0), 1.5) <= 4.0
    assert 3.9 <= load_held(_fails_between(2.9, 3.1, 4.0), 2.95) <= 4.0


def test_a_policy_that_never_holds_holds_nothing_and_the_search_ends() -> None:
    assert load_held(lambda load: False, 1.0) == 0.0


def test_a_good_guess_saves_runs() -> None:
    def runs(guess: float) -> int:
        tried: list[float] = []

        def holds(load: float) -> bool:
            tried.append(load)
            return load <= 4.2

        load_held(holds, guess)
        return len(tried)

    assert runs(4.2) <= 8 < runs(1.0)
