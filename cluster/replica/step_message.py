"""Writes a step plan as the `StepInput` that workers read. Knows both shapes, decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from argosy.internal.v1 import replica_pb2, step_pb2
from cluster.ids import Epoch
from cluster.replica.plan import OpenedSlot, RequestKey, StepPlan

LAST_SAMPLED = (-1,)
"""On the wire: the token that the slot sampled last."""


def step_input(
    plan: StepPlan,
    epoch: Epoch,
    specs: Mapping[RequestKey, replica_pb2.GenerationSpec],
    masks: Mapping[int, bytes],
) -> bytes:
    """The framed-to-be `EngineMessage`.

    Args:
        specs: every request that the plan opens a slot for.
        masks: by row, the tokens that may be sampled; rows without one may sample all.
    """
    token_ids: list[int] = []
    new_block_ids: list[int] = []
    for row in plan.rows:
        token_ids.extend(LAST_SAMPLED if row.token_ids is None else row.token_ids)
        new_block_ids.extend(row.new_block_ids)
    message = step_pb2.StepInput(
        step=plan.step,
        epoch=epoch,
        closed_slots=_int32(plan.closed_slots),
        opened=[_opened(slot, specs[slot.key]) for slot in plan.opened],
        row_slots=_int32([row.slot for row in plan.rows]),
        row_num_tokens=_int32([row.num_tokens for row in plan.rows]),
        row_start_positions=_int32([row.start_position for row in plan.rows]),
        token_ids=_int32(token_ids),
        row_num_new_blocks=_int32([len(row.new_block_ids) for row in plan.rows]),
        new_block_ids=_int32(new_block_ids),
        row_samples=bytes([row.samples for row in plan.rows]),
        masks=[step_pb2.RowMask(row=row, mask=mask) for row, mask in masks.items()],
        block_copies=_int32([block for copy in plan.block_copies for block in copy]),
    )
    return step_pb2.EngineMessage(step=message).SerializeToString()


def _opened(opened: OpenedSlot, spec: replica_pb2.GenerationSpec) -> step_pb2.SlotOpened:
    sampling = spec.sampling
    message = step_pb2.SlotOpened(
        slot=opened.slot, sampling=sampling, choice=opened.choice, num_prompt_tokens=opened.num_prompt_tokens
    )
    if sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty:
        message.history = _int32(opened.history)
        message.num_generated = len(opened.history) - opened.num_prompt_tokens
    if spec.HasField("top_logprobs"):
        message.top_logprobs = spec.top_logprobs
    if spec.min_tokens:
        # A stop token drawn too early would be text, and the model would go on as if the answer were over.
        message.suppressed_token_ids = _int32(spec.stop_token_ids)
        message.min_tokens = spec.min_tokens
    return message


def _int32(values: Iterable[int]) -> bytes:
    return np.array(values, dtype="<i4").tobytes()
