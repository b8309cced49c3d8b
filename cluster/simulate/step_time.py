"""How long a simulated device takes for a step. Knows six coefficients and a plan's rows, no scheduling.

The same six that routers predict with, evaluated exactly: a step with prefill takes prefill_base plus its prompt tokens
and their attention, a step without takes decode_base, and either takes its decoding sequences and their context.
"""

from __future__ import annotations

from cluster.replica.plan import StepPlan
from cluster.router.choose import StepCosts

H100_FP8_TP4 = StepCosts(
    prefill_base=0.0095,
    prefill_per_token=4.48e-5,
    prefill_per_token_context=1.09e-9,
    decode_base=0.0102,
    decode_per_sequence=3.70e-5,
    decode_per_context_token=1.46e-8,
)
"""Llama-70B in FP8 on four H100 SXM, seconds: fitted to llama70b_step_time_grid.csv.gz (see data/SOURCES.md)."""

H100_TP4_KV_TOKENS = 663_552
"""Tokens of keys and values: 0.9 of 4 x 80 GB, less 70.6 GB of weights, at 320 KiB a token (Llama-70B, bf16)."""


def scaled(costs: StepCosts, factor: float) -> StepCosts:
    """A device on which everything takes `factor` times as long."""
    return StepCosts(**{name: getattr(costs, name) * factor for name in StepCosts.__slots__})


def step_seconds(costs: StepCosts, plan: StepPlan) -> float:
    """Seconds of one step."""
    if not plan.num_prefill_tokens:
        return (
            costs.decode_base
            + costs.decode_per_sequence * plan.num_decode_tokens
            + costs.decode_per_context_token * plan.context_tokens
        )
    attended = 0.0
    decoded = 0
    for row in plan.rows:
        if row.token_ids is None:
            decoded += row.start_position + 1
        else:
            attended += row.num_tokens * (row.start_position + row.num_tokens / 2)
    return (
        costs.prefill_base
        + costs.prefill_per_token * plan.num_prefill_tokens
        + costs.prefill_per_token_context * attended
        + costs.decode_per_sequence * plan.num_decode_tokens
        + costs.decode_per_context_token * decoded
    )
