"""What waits for a slow router: merged, in order, bounded by the tokens themselves."""

from __future__ import annotations

import asyncio

import numpy as np

from argosy.internal.v1 import replica_pb2, step_pb2
from cluster.ids import Epoch
from cluster.replica.connection import Connection
from cluster.replica.plan import OpenedSlot, PlannedRow, StepPlan
from cluster.replica.step_message import step_input


def delta(stream: int, first: int, *tokens: int, choice: int = 0, **fields: object) -> replica_pb2.TokenDelta:
    return replica_pb2.TokenDelta(stream_id=stream, choice=choice, first_index=first, token_ids=tokens, **fields)


def test_news_of_one_choice_is_merged_and_others_keep_their_order() -> None:
    connection = Connection(1, "router")
    connection.add(delta(1, 0, 5, cached_prompt_tokens=16))
    connection.add(delta(2, 7, 6))
    connection.add(delta(1, 1, 8, 9))
    connection.add(delta(1, 0, 4, choice=1))
    connection.add(delta(1, 3, end=replica_pb2.END_REASON_ERROR, detail="why"))
    first, second, third = connection.take()
    assert first == delta(1, 0, 5, 8, 9, cached_prompt_tokens=16, end=replica_pb2.END_REASON_ERROR, detail="why")
    assert (second, third) == (delta(2, 7, 6), delta(1, 0, 4, choice=1))
    assert connection.take() == []


def test_a_router_that_never_reads_costs_one_delta_a_choice() -> None:
    connection = Connection(1, "router")
    for step in range(1000):
        for stream in range(4):
            connection.add(delta(stream, step, step))
    deltas = connection.take()
    assert [len(entry.token_ids) for entry in deltas] == [1000] * 4


def test_nothing_follows_a_cancel() -> None:
    connection = Connection(1, "router")
    connection.add(delta(1, 0, 5))
    connection.add(delta(2, 0, 5))
    connection.forget(1)
    assert connection.take() == [delta(2, 0, 5)]


def test_news_wakes_the_writer_and_silence_the_heartbeat() -> None:
    async def main() -> None:
        connection = Connection(1, "router")
        connection.add(delta(1, 0, 5))
        async with asyncio.timeout(1):
            await connection.wait(60)
            waiting = asyncio.create_task(connection.wait(60))
            await asyncio.sleep(0)
            assert not waiting.done()
            connection.add(delta(1, 1, 5))
            await waiting
            await connection.wait(0.01)

    asyncio.run(main())


def test_a_plan_is_written_as_the_wire_says() -> None:
    sampling = replica_pb2.SamplingSpec(temperature=1.0, top_p=1.0, repetition_penalty=1.1)
    spec = replica_pb2.GenerationSpec(sampling=sampling, stop_token_ids=[2], min_tokens=3, top_logprobs=0)
    plan = StepPlan(
        step=4,
        lane=0,
        rows=(
            PlannedRow(1, "a", 2, (7, 8), 2, 5, (3, 4), True),
            PlannedRow(0, "b", 0, None, 1, 9, (), False),
        ),
        opened=(OpenedSlot(1, "a", 2, 6, (1, 2, 3, 4, 5, 6, 7)),),
        closed_slots=(5,),
        block_copies=((1, 2), (3, 4)),
        num_prefill_tokens=2,
        num_decode_tokens=1,
        context_tokens=0,
    )
    message = step_pb2.EngineMessage.FromString(step_input(plan, Epoch(9), {"a": spec}, {})).step
    arrays = {
        "closed_slots": [5],
        "row_slots": [1, 0],
        "row_num_tokens": [2, 1],
        "row_start_positions": [5, 9],
        "token_ids": [7, 8, -1],
        "row_num_new_blocks": [2, 0],
        "new_block_ids": [3, 4],
        "block_copies": [1, 2, 3, 4],
    }
    assert {name: np.frombuffer(getattr(message, name), "<i4").tolist() for name in arrays} == arrays
    assert (message.step, message.epoch, message.row_samples) == (4, 9, b"\x01\x00")
    (entry,) = message.opened
    assert (entry.slot, entry.choice, entry.num_prompt_tokens, entry.num_generated) == (1, 2, 6, 1)
    assert np.frombuffer(entry.history, "<i4").tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (entry.min_tokens, entry.HasField("top_logprobs"), entry.sampling) == (3, True, sampling)
