"""Fills one step for one lane: decodes first, then prefill chunks by urgency, within the token budget.

Knows the rules of a single step; which lane is next and what came of it is the scheduler's.
"""

from __future__ import annotations

from cluster.replica.block_manager import BlockManager
from cluster.replica.plan import OpenedSlot, PlannedRow, SchedulerConfig
from cluster.replica.residents import Lane, Residents
from cluster.replica.sequence import Phase, SequenceState
from cluster.replica.waiting import WaitingQueue


class StepBuilder:
    """One step while it is being filled. After `fill`, the fields say what it holds."""

    def __init__(
        self,
        config: SchedulerConfig,
        residents: Residents,
        blocks: BlockManager,
        waiting: WaitingQueue,
        lane: Lane,
        now: float,
    ) -> None:
        self._residents = residents
        self._blocks = blocks
        self._waiting = waiting
        self._lane = lane
        self._now = now
        self._budget = config.max_batch_tokens
        self._prefilled: tuple[SequenceState, ...] = ()
        self.rows: list[PlannedRow] = []
        self.sequences: list[SequenceState] = []
        """Of each row."""
        self.opened: list[OpenedSlot] = []
        self.block_copies: list[tuple[int, int]] = []
        self.num_prefill_tokens = 0
        self.num_decode_tokens = 0
        self.context_tokens = 0
        self.hit_tokens = 0

    def fill(self) -> None:
        """Plan rows until the budget or the work is used up, and account for them."""
        self._residents.num_stalled = 0
        self._plan_decodes()
        self._plan_prefills()
        for sequence in self._prefilled:
            self._finish_prefill(sequence)

    def _plan_decodes(self) -> None:
        lane, rows, sequences, now = self._lane, self.rows, self.sequences, self._now
        for sequence in list(lane.decoding):
            if self._budget <= len(rows):
                self._rotate()
                break
            request = sequence.request
            if sequence.num_unknown > 1 or request.deadline <= now or sequence.phase is not Phase.DECODE:
                continue
            position = sequence.num_computed
            if position + 1 >= request.max_length:
                continue  # its last token is being sampled
            credit = request.credit
            if (credit is not None and credit <= 0) or not sequence.may_sample:
                continue
            new_blocks: tuple[int, ...] = ()
            if position == sequence.capacity:
                block = self._residents.grow(sequence)
                if block is None:
                    continue
                new_blocks = (block,)
            if credit is not None:
                request.credit = credit - 1
            sequence.may_sample = not request.needs_permits
            rows.append(PlannedRow(sequence.slot, request.key, sequence.choice, None, 1, position, new_blocks, True))
            sequences.append(sequence)
            sequence.num_computed = position + 1
            sequence.num_unknown += 1
            sequence.in_flight += 1
            self.context_tokens += position + 1
        self.num_decode_tokens = len(rows)
        self._budget -= len(rows)

    def _rotate(self) -> None:
        """More decodes than budget: those served now go to the end of the line."""
        decoding = self._lane.decoding
        for sequence in self.sequences:
            if sequence.phase is Phase.DECODE:
                del decoding[sequence]
                decoding[sequence] = None

    def _plan_prefills(self) -> None:
        waiting, now = self._waiting, self._now
        active = sorted(self._lane.prefilling, key=lambda sequence: waiting.urgency(sequence, now), reverse=True)
        admitting = not self._residents.num_stalled and len(self._lane) == min(map(len, self._residents.lanes))
        while self._budget > 0:
            candidate = waiting.peek(now) if admitting else None
            if active and (candidate is None or waiting.urgency(active[-1], now) < waiting.urgency(candidate, now)):
                self._prefill(active.pop())
            elif candidate is None:
                return
            elif candidate.request.is_paused or not candidate.may_sample:
                waiting.remove(candidate)
            elif self._admit(candidate):
                self._prefill(candidate)
                admitting = len(self._lane) <= min(map(len, self._residents.lanes))
            else:
                admitting = False

    def _admit(self, sequence: SequenceState) -> bool:
        """Give a slot and the blocks of all known tokens, or nothing: prefills that began can be completed."""
        residents = self._residents
        too_late = self._waiting.urgency(sequence, self._now)[0]
        if not residents.has_free_slot and not residents.make_room(sequence, 0, too_late=too_late):
            return False
        prefix = residents.find_prefix(sequence, self._prefilled)
        fresh = residents.blocks_for(len(sequence.tokens)) - len(prefix.shared)
        if not residents.can_enter(prefix.shared, fresh):
            if not residents.make_room(sequence, fresh, too_late=too_late):
                return False
            prefix = residents.find_prefix(sequence, self._prefilled)  # of the victims' blocks, some may be free now
            fresh = residents.blocks_for(len(sequence.tokens)) - len(prefix.shared)
            if not residents.can_enter(prefix.shared, fresh):
                return False
        residents.enter(sequence, self._lane, prefix)
        if prefix.copied is not None:
            self._blocks.hold((prefix.copied,))
            self.block_copies.append((prefix.copied, sequence.blocks[len(prefix.shared)]))
        request = sequence.request
        if request.cached_prompt_tokens is None:
            request.cached_prompt_tokens = min(prefix.hit_tokens, request.prompt_length)
        self.hit_tokens += prefix.hit_tokens
        history = tuple(sequence.tokens)
        self.opened.append(OpenedSlot(sequence.slot, request.key, sequence.choice, request.prompt_length, history))
        return True

    def _prefill(self, sequence: SequenceState) -> None:
        """Plan the sequence's next chunk; its last one samples, if there are credit and permit for that."""
        request = sequence.request
        if request.deadline <= self._now or sequence.phase is not Phase.PREFILL:
            return
        start, remaining = sequence.num_computed, sequence.remaining
        count = min(remaining, self._budget)
        samples = count == remaining
        if samples and (request.is_paused or not sequence.may_sample):
            samples, count = False, count - 1
        if not count:
            return
        if samples:
            sequence.may_sample = not request.needs_permits
            if request.credit is not None:
                request.credit -= 1
        end = start + count
        is_first = bool(self.opened) and self.opened[-1].slot == sequence.slot
        new_blocks = tuple(sequence.blocks) if is_first else ()
        tokens = tuple(sequence.tokens[start:end])
        row = PlannedRow(sequence.slot, request.key, sequence.choice, tokens, count, start, new_blocks, samples)
        self.rows.append(row)
        self.sequences.append(sequence)
        self._prefilled += (sequence,)
        sequence.num_computed = end
        sequence.num_unknown = int(samples)
        sequence.in_flight += 1
        self._budget -= count
        self.num_prefill_tokens += count
        self.context_tokens += end

    def _finish_prefill(self, sequence: SequenceState) -> None:
        """Now that the step is full: later steps may find the new blocks, and other choices may fork."""
        self._residents.register(sequence)
        self._residents.fork(sequence)
        if sequence.phase is not Phase.PREFILL:
            return  # preempted for one that came up after it; its forks have what they need, it starts anew
        self._waiting.set_pending(sequence, sequence.remaining)
        if sequence.num_unknown:
            self._residents.begin_decode(sequence)
