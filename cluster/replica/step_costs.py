"""How long steps take, as six coefficients fitted from the steps themselves. Knows plans and seconds; no clocks.

Two least-squares fits that forget: decode-only steps give base, seconds a sequence and seconds a context token; steps
with prefill, less what their decodes cost, give base, seconds a token and seconds a (token, context token) pair. Time
is never negative, so neither is a coefficient: of a column's subsets, the best fit without a negative one is taken.
"""

from __future__ import annotations

import itertools

import numpy as np

from argosy.internal.v1 import control_pb2
from cluster.replica.plan import StepPlan

FORGET = 0.995
"""Weight of a step in the fit, as a share of the next one's: about the last 200 count."""
FEWEST_STEPS = 8
"""Before so many steps of a kind nothing is told of it."""

_SUBSETS = [subset for size in (3, 2, 1) for subset in itertools.combinations(range(3), size)]


class NonNegativeFit:
    """y ≈ c · x with c ≥ 0, three columns, newest samples first."""

    def __init__(self) -> None:
        self.num_samples = 0
        self._xx = np.zeros((3, 3))
        self._xy = np.zeros(3)

    def learn(self, x: tuple[float, float, float], y: float) -> None:
        """Take in one sample."""
        row = np.array(x)
        self._xx = FORGET * self._xx + np.outer(row, row)
        self._xy = FORGET * self._xy + y * row
        self.num_samples += 1

    def solve(self) -> tuple[float, float, float]:
        """The coefficients with the least squared error."""
        scale = np.sqrt(np.maximum(np.diag(self._xx), 1e-300))
        # Columns of one length, and a hair of ridge: one that never varied shares with the base and stays finite.
        xx = self._xx / np.outer(scale, scale)
        xy = self._xy / scale
        best, best_gain = np.zeros(3), 0.0
        for subset in map(list, _SUBSETS):
            part = np.linalg.solve(xx[np.ix_(subset, subset)] + 1e-9 * np.eye(len(subset)), xy[subset])
            gain = float(2 * part @ xy[subset] - part @ xx[np.ix_(subset, subset)] @ part)
            if (part >= 0).all() and gain > best_gain:
                best, best_gain = np.zeros(3), gain
                best[subset] = part
        base, first, second = (best / scale).tolist()
        return base, first, second


class StepCostFit:
    """The six coefficients of one epoch."""

    def __init__(self) -> None:
        self._prefill = NonNegativeFit()
        self._decode = NonNegativeFit()
        self._known: tuple[tuple[int, int], control_pb2.StepCoefficients | None] = ((0, 0), None)

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """A step took `seconds`."""
        if not plan.num_prefill_tokens:
            self._decode.learn((1.0, plan.num_decode_tokens, plan.context_tokens), seconds)
            return
        pairs = 0.0
        decoded = 0
        for row in plan.rows:
            if row.token_ids is None:
                decoded += row.start_position + 1
            else:
                pairs += row.num_tokens * (row.start_position + row.num_tokens / 2)
        own = seconds
        known = self._known[1]
        if known is not None:
            decodes = known.decode_per_sequence * plan.num_decode_tokens + known.decode_per_context_token * decoded
            own = max(0.0, seconds - decodes)
        self._prefill.learn((1.0, plan.num_prefill_tokens, pairs), own)

    def coefficients(self) -> control_pb2.StepCoefficients | None:
        """The fit as of now; None before enough steps of both kinds."""
        samples = (self._prefill.num_samples, self._decode.num_samples)
        if min(samples) < FEWEST_STEPS:
            return None
        if samples != self._known[0]:
            base, token, pair = self._prefill.solve()
            decode_base, sequence, context = self._decode.solve()
            told = control_pb2.StepCoefficients(
                prefill_base=base,
                prefill_per_token=token,
                prefill_per_token_context=pair,
                decode_base=decode_base,
                decode_per_sequence=sequence,
                decode_per_context_token=context,
            )
            self._known = (samples, told)
        return self._known[1]
