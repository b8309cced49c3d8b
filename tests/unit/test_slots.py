"""Worker slots step by step, and the order in which fed back tokens are taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.internal.v1 import replica_pb2, step_pb2
from cluster.worker.feedback import FeedBack
from cluster.worker.slots import LAST_SAMPLED, Slots, StepError

BLOCK = 4
GREEDY = replica_pb2.SamplingSpec(temperature=0.0, top_p=1.0, repetition_penalty=1.0)


def ints(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def step(number: int, rows: list[dict], **fields: object) -> step_pb2.StepInput:
    """`rows`: slot, tokens, start, blocks, samples."""
    return step_pb2.StepInput(
        step=number,
        row_slots=ints(*(row["slot"] for row in rows)),
        row_num_tokens=ints(*(len(row["tokens"]) for row in rows)),
        row_start_positions=ints(*(row["start"] for row in rows)),
        token_ids=ints(*(token for row in rows for token in row["tokens"])),
        row_num_new_blocks=ints(*(len(row.get("blocks", ())) for row in rows)),
        new_block_ids=ints(*(block for row in rows for block in row.get("blocks", ()))),
        row_samples=bytes(row.get("samples", True) for row in rows),
        **fields,
    )


def opened(slot: int, num_prompt_tokens: int, **fields: object) -> step_pb2.SlotOpened:
    return step_pb2.SlotOpened(slot=slot, num_prompt_tokens=num_prompt_tokens, **{"sampling": GREEDY, **fields})


def slots(**fields: object) -> Slots:
    return Slots(8, 64, BLOCK, **{"embeds": True, "samples": True, **fields})


def test_prefill_in_chunks_then_decode() -> None:
    state = slots()
    first = state.prepare(
        step(
            1,
            [
                {"slot": 2, "tokens": [5, 6, 7, 8, 9], "start": 0, "blocks": [3, 1], "samples": False},
                {"slot": 0, "tokens": [4], "start": 0, "blocks": [7]},
            ],
            opened=[opened(2, 7), opened(0, 1, choice=1)],
            block_copies=ints(3, 9),
        )
    )
    batch = first.batch
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0]
    assert batch.query_starts.tolist() == [0, 5, 6]
    assert batch.context_lengths.tolist() == [5, 1]
    assert batch.block_tables.tolist() == [[3, 1], [7, 0]]
    assert batch.block_copies.tolist() == [[3, 9]]
    assert [(row.row, row.position, row.choice) for row in batch.sampling] == [(1, 0, 1)]
    assert first.sampled_slots.tolist() == [0]
    state.record(first.sampled_slots, np.array([77], np.int32))
    second = state.prepare(
        step(2, [{"slot": 0, "tokens": [LAST_SAMPLED], "start": 1}, {"slot": 2, "tokens": [1, 2], "start": 5}])
    )
    assert second.batch.token_ids.tolist() == [77, 1, 2]
    assert second.batch.block_tables.tolist() == [[7, 0], [3, 1]]
    assert [(row.row, row.position) for row in second.batch.sampling] == [(0, 1), (1, 0)]


def test_a_slot_keeps_nothing_of_the_sequence_before() -> None:
    state = slots()
    state.prepare(step(1, [{"slot": 1, "tokens": [1] * 9, "start": 0, "blocks": [4, 5, 6]}], opened=[opened(1, 9)]))
    again = state.prepare(
        step(
            2,
            [
                {"slot": 1, "tokens": [2], "start": 0, "blocks": [8]},
                {"slot": 3, "tokens": [3] * 5, "start": 0, "blocks": [1, 2]},
            ],
            closed_slots=ints(1),
            opened=[opened(1, 1), opened(3, 5)],
        )
    )
    assert again.batch.block_tables.tolist() == [[8, 0], [1, 2]]
    with pytest.raises(StepError, match="never sampled"):
        state.prepare(step(3, [{"slot": 1, "tokens": [LAST_SAMPLED], "start": 1}]))


def test_penalties_see_the_prompt_and_every_token_since() -> None:
    state = slots()
    penal = replica_pb2.SamplingSpec(temperature=1.0, top_p=1.0, repetition_penalty=1.2)
    entry = opened(0, 3, sampling=penal, history=ints(7, 8, 9, 1), num_generated=1)
    row = state.prepare(step(1, [{"slot": 0, "tokens": [7, 8, 9, 1], "start": 0, "blocks": [0]}], opened=[entry]))
    sampling = row.batch.sampling[0]
    assert (sampling.history.tolist(), sampling.num_generated, sampling.position) == ([7, 8, 9, 1], 1, 1)
    state.record(row.sampled_slots, np.array([5], np.int32))
    row = state.prepare(step(2, [{"slot": 0, "tokens": [LAST_SAMPLED], "start": 4, "blocks": [1]}]))
    sampling = row.batch.sampling[0]
    assert (sampling.history.tolist(), sampling.num_generated, sampling.position) == ([7, 8, 9, 1, 5], 2, 2)


def test_stop_tokens_are_suppressed_until_min_tokens() -> None:
    state = slots()
    entry = opened(0, 1, suppressed_token_ids=ints(2, 3), min_tokens=2)
    seen = []
    for number in range(4):
        tokens = [9] if number == 0 else [LAST_SAMPLED]
        fields = {"opened": [entry]} if number == 0 else {}
        blocks = [number] if number % BLOCK == 0 else []
        ready = state.prepare(
            step(number + 1, [{"slot": 0, "tokens": tokens, "start": number, "blocks": blocks}], **fields)
        )
        suppressed = ready.batch.sampling[0].suppressed_token_ids
        seen.append(None if suppressed is None else suppressed.tolist())
        state.record(ready.sampled_slots, np.array([number], np.int32))
    assert seen == [[2, 3], [2, 3], None, None]


def test_masks_and_log_probabilities_reach_their_rows() -> None:
    state = slots()
    ready = state.prepare(
        step(
            1,
            [{"slot": i, "tokens": [i], "start": 0, "blocks": [i]} for i in range(3)],
            opened=[opened(0, 1), opened(1, 1, top_logprobs=0), opened(2, 1)],
            masks=[step_pb2.RowMask(row=2, mask=ints(5, -1))],
        )
    )
    assert [row.top_logprobs for row in ready.batch.sampling] == [None, 0, None]
    assert [None if row.mask is None else row.mask.tolist() for row in ready.batch.sampling] == [None, None, [5, -1]]


def test_stages_that_do_not_sample_carry_no_sampling_rows() -> None:
    state = slots(embeds=False, samples=False)
    ready = state.prepare(step(1, [{"slot": 0, "tokens": [LAST_SAMPLED], "start": 0, "blocks": [1]}]))
    assert ready.batch.sampling == ()
    assert ready.sampled_slots.tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        ([], {}),
        ([{"slot": 8, "tokens": [1], "start": 0}], {}),
        ([{"slot": -1, "tokens": [1], "start": 0}], {}),
        ([{"slot": 0, "tokens": [], "start": 0}], {}),
        ([{"slot": 0, "tokens": [1], "start": -1}], {}),
        ([{"slot": 1, "tokens": [1], "start": 0}], {}),
        ([{"slot": 0, "tokens": [1], "start": 0}], {"token_ids": ints(1, 2)}),
        ([{"slot": 0, "tokens": [1], "start": 0}], {"row_samples": b""}),
        ([{"slot": 0, "tokens": [1], "start": 0}], {"new_block_ids": ints(4)}),
        ([{"slot": 0, "tokens": [1], "start": 0}], {"block_copies": ints(4)}),
        ([{"slot": 0, "tokens": [1], "start": 0}], {"row_slots": b"\x00"}),
        ([{"slot": 0, "tokens": [1], "start": 0, "blocks": list(range(40))}], {}),
        ([{"slot": 0, "tokens": [1], "start": 0}], {"opened": [opened(0, 1), opened(0, 1)]}),
        ([{"slot": 0, "tokens": [1], "start": 0}], {"opened": [opened(9, 1)]}),
    ],
)
def test_a_step_that_contradicts_itself_is_refused(rows: list[dict], fields: dict) -> None:
    state = slots()
    message = step(1, rows, **{"opened": [opened(0, 1)], **{k: v for k, v in fields.items() if k == "opened"}})
    for name, value in fields.items():
        if name != "opened":
            setattr(message, name, value)
    with pytest.raises(StepError, match="step 1"):
        state.prepare(message)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_feed_back_is_taken_in_order_before_anyone_needs_it(data: st.DataObject) -> None:
    """Any interleaving of sequences over two slots and three stages: each row reads its own slot's last token."""
    num_slots, num_stages = 3, 3
    state = slots(samples=False)
    wire: list[tuple[int, list[int]]] = []
    taken = 0

    def take(count: int) -> np.ndarray:
        nonlocal taken
        _, tokens = wire[taken]
        taken += 1
        assert len(tokens) == count
        return np.array(tokens, np.int32)

    feedback = FeedBack(state, take, num_stages)
    positions: dict[int, int] = {}
    last: dict[int, int] = {}
    for number in range(1, 25):
        chosen = sorted(data.draw(st.sets(st.integers(0, num_slots - 1), min_size=1)))
        rows, entries, closed, expected = [], [], [], []
        for slot in chosen:
            if slot not in positions or data.draw(st.booleans()):
                if slot in positions:
                    closed.append(slot)
                positions[slot] = 0
                entries.append(opened(slot, 1))
                expected.append(100 + number)
                tokens = [100 + number]
            else:
                expected.append(last[slot])
                tokens = [LAST_SAMPLED]
            blocks = [0] if positions[slot] % BLOCK == 0 else []
            rows.append({"slot": slot, "tokens": tokens, "start": positions[slot], "blocks": blocks})
            positions[slot] += 1
            last[slot] = 1000 * number + slot
        message = step(number, rows, opened=entries, closed_slots=ints(*closed))
        feedback.before(message)
        ready = state.prepare(message)
        feedback.after(ready)
        assert ready.batch.token_ids.tolist() == expected
        wire.append((number, [last[slot] for slot in chosen]))
        assert number - taken <= num_stages + 1, "what is outstanding must stay bounded"
