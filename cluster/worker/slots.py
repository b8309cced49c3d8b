"""A worker's memory between steps: one slot a sequence. Turns `StepInput`, which carries changes, into a whole `Batch`.

Knows arrays and the wire's step messages; knows no torch, no sockets and not why a sequence runs or ends.
Shapes: R rows of a step, T packed tokens, S slots, B blocks of the longest sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from argosy.internal.v1 import replica_pb2, step_pb2
from model.batch import Batch, Int32Array, SamplingRow
from model.sampling_params import SamplingParams

LAST_SAMPLED = -1
"""Token id on the wire that stands for "what this slot sampled last"."""

_INT32 = np.dtype("<i4")


class StepError(ValueError):
    """A step contradicts itself or the slots: the engine has a defect, so this worker must not go on."""


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step ready to run."""

    step: int
    batch: Batch
    sampled_slots: Int32Array
    """Slots that sample in this step, in row order."""


@dataclass(slots=True)
class _Sequence:
    """What a slot needs in order to sample."""

    params: SamplingParams
    choice: int
    min_tokens: int
    suppressed_token_ids: Int32Array | None
    top_logprobs: int | None
    history: Int32Array | None
    """[context_length] buffer, only with penalties; the first `length` are valid."""
    length: int
    num_prompt_tokens: int


class Slots:
    """The slots of one worker. Prepare steps in order, and record each one's tokens before they are needed."""

    def __init__(
        self, max_sequences: int, context_length: int, block_size: int, *, embeds: bool, samples: bool
    ) -> None:
        """`embeds`: this stage reads token ids. `samples`: it draws tokens, so its batches carry sampling rows."""
        # A sequence may run one token past its end before the engine hears of the end.
        max_blocks = -(-(context_length + 1) // block_size)
        self._embeds = embeds
        self._samples = samples
        self._context_length = context_length
        self._block_tables = np.zeros((max_sequences, max_blocks), np.int32)  # [S, B]
        self._num_blocks = np.zeros(max_sequences, np.int32)  # [S]
        self._last_tokens = np.full(max_sequences, LAST_SAMPLED, np.int32)  # [S]
        self._sequences: list[_Sequence | None] = [None] * max_sequences

    def prepare(self, message: step_pb2.StepInput) -> PreparedStep:
        """Apply the changes and build the step's batch.

        Raises:
            StepError: the message is malformed.
        """
        try:
            return self._prepare(message)
        except (ValueError, IndexError) as error:
            raise StepError(f"step {message.step}: {error}") from error

    def record(self, slots: Int32Array, token_ids: Int32Array) -> None:
        """Remember what each of `slots` sampled."""
        self._last_tokens[slots] = token_ids
        if not self._samples:
            return
        for slot, token_id in zip(slots.tolist(), token_ids.tolist(), strict=True):
            sequence = self._sequences[slot]
            if sequence is not None and sequence.history is not None and sequence.length < len(sequence.history):
                sequence.history[sequence.length] = token_id
                sequence.length += 1

    def _prepare(self, message: step_pb2.StepInput) -> PreparedStep:
        self._close(_int32(message.closed_slots))
        for opened in message.opened:
            self._open(opened)
        slots = _int32(message.row_slots)
        counts = _int32(message.row_num_tokens)
        starts = _int32(message.row_start_positions)
        num_rows = len(slots)
        if num_rows == 0 or len(counts) != num_rows or len(starts) != num_rows:
            raise ValueError(f"{num_rows} slots, {len(counts)} token counts and {len(starts)} positions must be equal")
        if int(slots.min()) < 0 or int(counts.min()) < 1 or int(starts.min()) < 0:
            raise ValueError("negative slot or position, or a row without tokens")
        self._append_blocks(slots, _int32(message.row_num_new_blocks), _int32(message.new_block_ids))
        query_starts = np.zeros(num_rows + 1, np.int32)
        np.cumsum(counts, out=query_starts[1:])
        context_lengths = starts + counts
        samples = np.frombuffer(message.row_samples, np.uint8).astype(bool)
        if len(samples) != num_rows:
            raise ValueError(f"{len(samples)} sampling flags for {num_rows} rows")
        width = max(1, int(self._num_blocks[slots].max()))
        batch = Batch(
            token_ids=self._tokens(_int32(message.token_ids), slots, counts),
            positions=np.arange(query_starts[-1], dtype=np.int32) + np.repeat(starts - query_starts[:-1], counts),
            query_starts=query_starts,
            context_lengths=context_lengths,
            block_tables=self._block_tables[slots, :width],
            sampling=self._sampling(message, slots, context_lengths, samples) if self._samples else (),
            block_copies=_int32(message.block_copies).reshape(-1, 2),
        )
        return PreparedStep(step=message.step, batch=batch, sampled_slots=slots[samples])

    def _close(self, slots: Int32Array) -> None:
        for slot in slots.tolist():
            self._sequences[slot] = None

    def _open(self, opened: step_pb2.SlotOpened) -> None:
        slot = opened.slot
        if self._sequences[slot] is not None:
            raise ValueError(f"slot {slot} is opened but not closed")
        # Entries past the end of a row's table must read 0, so wipe what the last sequence left.
        self._block_tables[slot, : self._num_blocks[slot]] = 0
        self._num_blocks[slot] = 0
        self._last_tokens[slot] = LAST_SAMPLED
        history = None
        length = 0
        if opened.history:
            tokens = _int32(opened.history)
            length = len(tokens)
            history = np.empty(max(length, self._context_length + 1), np.int32)
            history[:length] = tokens
        self._sequences[slot] = _Sequence(
            params=sampling_params(opened.sampling),
            choice=opened.choice,
            min_tokens=opened.min_tokens,
            suppressed_token_ids=_int32(opened.suppressed_token_ids) if opened.suppressed_token_ids else None,
            top_logprobs=opened.top_logprobs if opened.HasField("top_logprobs") else None,
            history=history,
            length=length,
            num_prompt_tokens=opened.num_prompt_tokens,
        )

    def _append_blocks(self, slots: Int32Array, counts: Int32Array, block_ids: Int32Array) -> None:
        if len(counts) != len(slots) or int(counts.sum()) != len(block_ids):
            raise ValueError(f"{len(block_ids)} new blocks do not match their {len(counts)} counts")
        offset = 0
        for row in np.flatnonzero(counts).tolist():
            slot, count = slots[row], counts[row]
            used = self._num_blocks[slot]
            if used + count > self._block_tables.shape[1]:
                raise ValueError(f"slot {slot} would hold {used + count} blocks, more than a context has")
            self._block_tables[slot, used : used + count] = block_ids[offset : offset + count]
            self._num_blocks[slot] = used + count
            offset += count

    def _tokens(self, token_ids: Int32Array, slots: Int32Array, counts: Int32Array) -> Int32Array:
        if len(token_ids) != int(counts.sum()):
            raise ValueError(f"{len(token_ids)} tokens where the rows count {int(counts.sum())}")
        known = np.where(token_ids == LAST_SAMPLED, np.repeat(self._last_tokens[slots], counts), token_ids)
        if self._embeds and int(known.min()) < 0:
            raise ValueError("a row continues a token that its slot never sampled")
        return known

    def _sampling(
        self, message: step_pb2.StepInput, slots: Int32Array, context_lengths: Int32Array, samples: np.ndarray
    ) -> tuple[SamplingRow, ...]:
        masks = {mask.row: _int32(mask.mask) for mask in message.masks}
        rows = []
        for row in np.flatnonzero(samples).tolist():
            slot = int(slots[row])
            sequence = self._sequences[slot]
            if sequence is None:
                raise ValueError(f"row {row} samples in slot {slot}, which is closed")
            position = int(context_lengths[row]) - sequence.num_prompt_tokens
            history = sequence.history
            rows.append(
                SamplingRow(
                    row=row,
                    params=sequence.params,
                    choice=sequence.choice,
                    position=position,
                    history=None if history is None else history[: sequence.length],
                    num_generated=0 if history is None else sequence.length - sequence.num_prompt_tokens,
                    suppressed_token_ids=sequence.suppressed_token_ids if position < sequence.min_tokens else None,
                    mask=masks.get(row),
                    top_logprobs=sequence.top_logprobs,
                )
            )
        return tuple(rows)


def sampling_params(spec: replica_pb2.SamplingSpec) -> SamplingParams:
    """The wire's sampling parameters as the sampler's."""
    return SamplingParams(
        temperature=spec.temperature,
        top_k=spec.top_k,
        top_p=spec.top_p,
        min_p=spec.min_p,
        seed=spec.seed,
        repetition_penalty=spec.repetition_penalty,
        presence_penalty=spec.presence_penalty,
        frequency_penalty=spec.frequency_penalty,
        logit_bias=dict(spec.logit_bias),
    )


def _int32(data: bytes) -> Int32Array:
    return np.frombuffer(data, _INT32)


def has_prompt_tokens(message: step_pb2.StepInput) -> bool:
    """Whether any token of the step is given, as prompts are, and not the one that was sampled last."""
    return bool((_int32(message.token_ids) != LAST_SAMPLED).any())


def awaited_slots(message: step_pb2.StepInput) -> set[int]:
    """Slots whose earlier tokens must be recorded before the step is prepared: rows that continue them, and slots
    that change hands (a late token of the last sequence must not become the next one's)."""
    slots = {opened.slot for opened in message.opened}
    from_last = _int32(message.token_ids) == LAST_SAMPLED
    if from_last.any():
        owners = np.repeat(_int32(message.row_slots), _int32(message.row_num_tokens))
        slots.update(owners[from_last].tolist())
    return slots
