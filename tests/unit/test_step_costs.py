"""The six coefficients are found again from steps that were made with them."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from cluster.replica.plan import StepPlan
from cluster.replica.step_costs import FEWEST_STEPS, NonNegativeFit, StepCostFit


def plan(prefill: int, decodes: int, context: int) -> StepPlan:
    """The parts of a plan that cost time."""
    rows = [SimpleNamespace(token_ids=None, start_position=context - 1, num_tokens=1) for _ in range(decodes)]
    if prefill:
        rows.append(SimpleNamespace(token_ids=[0] * prefill, start_position=context, num_tokens=prefill))
    fields = {"num_prefill_tokens": prefill, "num_decode_tokens": decodes, "context_tokens": context * decodes}
    return SimpleNamespace(rows=rows, **fields)  # type: ignore[return-value]


def test_coefficients_are_found_again() -> None:
    rng = random.Random(1)
    fit = StepCostFit()
    for _ in range(300):
        n, context = rng.randint(1, 30), rng.randint(10, 900)
        fit.learn(plan(0, n, context), 0.02 + 1e-3 * n + 2e-6 * n * context)
        prefill = rng.randint(16, 512)
        pairs = prefill * (context + prefill / 2)
        decodes = 1e-3 * n + 2e-6 * n * context
        fit.learn(plan(prefill, n, context), 0.03 + 5e-4 * prefill + 1e-7 * pairs + decodes)
        fit.coefficients()
    told = fit.coefficients()
    assert told is not None
    assert told.decode_base == pytest.approx(0.02, rel=0.01)
    assert told.decode_per_sequence == pytest.approx(1e-3, rel=0.01)
    assert told.decode_per_context_token == pytest.approx(2e-6, rel=0.01)
    assert told.prefill_base == pytest.approx(0.03, rel=0.2)
    assert told.prefill_per_token == pytest.approx(5e-4, rel=0.1)
    assert told.prefill_per_token_context == pytest.approx(1e-7, rel=0.1)


def test_no_coefficient_is_negative_nor_absurd() -> None:
    """Times that fall with size, and columns that never vary."""
    fit = NonNegativeFit()
    for size in range(1, 20):
        fit.learn((1.0, size, 0.0), 1.0 / size)
    assert all(0 <= value < 1 for value in fit.solve())


def test_little_is_not_told() -> None:
    fit = StepCostFit()
    for _ in range(FEWEST_STEPS - 1):
        fit.learn(plan(0, 1, 5), 0.01)
        fit.learn(plan(8, 0, 5), 0.01)
    assert fit.coefficients() is None
