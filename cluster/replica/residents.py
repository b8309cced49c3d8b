"""Which sequences hold slots and blocks, in which lane, and who must give them back. Knows no steps, budgets or order.

A slot or block goes back only when no step in flight names its holder. Workers run steps in order, so they would not
mix tokens up sooner, but the engine reads results by slot: a slot with one meaning at a time cannot be misread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cluster.replica.block_manager import BlockManager
from cluster.replica.plan import SchedulerConfig
from cluster.replica.sequence import Phase, SequenceState
from cluster.replica.waiting import WaitingQueue


class Lane:
    """One micro-batch: a sequence stays in its lane, so that lanes can be in flight side by side."""

    __slots__ = ("decoding", "index", "prefilling")

    def __init__(self, index: int) -> None:
        self.index = index
        self.prefilling: dict[SequenceState, None] = {}
        self.decoding: dict[SequenceState, None] = {}

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)


class Prefix(NamedTuple):
    """The part of a sequence that need not be computed."""

    shared: list[int]
    """Full blocks to hold."""
    copied: int | None
    """Block of another choice whose first tokens, fewer than a block, are to be copied."""
    num_tokens: int
    """Tokens covered, the copied ones included; at least one less than the sequence has."""
    hit_tokens: int
    """Of them, found in the prefix cache."""


class Residents:
    """The sequences with a slot, and those that are about to give one back."""

    def __init__(self, config: SchedulerConfig, blocks: BlockManager, waiting: WaitingQueue) -> None:
        self._block_size = config.block_size
        self._prefix_cache = config.prefix_cache
        self._blocks = blocks
        self._waiting = waiting
        self._free_slots = list(range(config.max_sequences - 1, -1, -1))
        self._leaving: dict[SequenceState, None] = {}
        self.lanes = tuple(Lane(index) for index in range(config.num_lanes))
        self.closed_slots: list[int] = []
        """Given back since the last step that told workers."""
        self.num_preempted = 0
        """Sequences that had to start over."""
        self.num_stalled = 0
        """Sequences that got no block since the caller last set this to 0."""

    def __iter__(self) -> Iterator[SequenceState]:
        """Those that go on, leaving ones excluded."""
        for lane in self.lanes:
            yield from lane.prefilling
            yield from lane.decoding

    @property
    def headroom(self) -> int:
        """Blocks to leave over when a sequence enters: every resident soon wants its next, or would preempt for it."""
        return sum(map(len, self.lanes))

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free_slots)

    def can_enter(self, shared: Sequence[int], num_blocks: int) -> bool:
        """True if there is a slot, and `num_blocks` besides the `shared` ones and the headroom."""
        return bool(self._free_slots) and self._blocks.can_take(shared, num_blocks + self.headroom)

    def wait(self, sequence: SequenceState) -> None:
        """Put a sequence into the waiting queue, its prefill estimated from what the cache holds now."""
        prefix = self.find_prefix(sequence, ())
        self._waiting.push(sequence, len(sequence.tokens) - prefix.num_tokens)

    def find_prefix(self, sequence: SequenceState, planned_now: tuple[SequenceState, ...]) -> Prefix:
        """The longest computed prefix: in the cache, or held by another choice of the request.

        `planned_now` compute in the step being built, so their blocks cannot be copied before it.
        """
        size, usable = self._block_size, len(sequence.tokens) - 1
        shared: list[int] = []
        if self._prefix_cache:
            shared = self._blocks.lookup(sequence.keys_of_full_blocks(size)[: usable // size])
        hit_tokens = best = len(shared) * size
        copied = None
        for other in sequence.request.sequences:
            covered = min(other.num_computed, sequence.request.prompt_length, usable)
            if covered > best and other not in planned_now:
                full, rest = divmod(covered, size)
                shared, copied = other.blocks[:full], other.blocks[full] if rest else None
                best, hit_tokens = covered, 0
        return Prefix(shared, copied, best, hit_tokens)

    def enter(self, sequence: SequenceState, lane: Lane, prefix: Prefix) -> None:
        """Give a sequence a slot and blocks; the caller has checked that there are some."""
        self._waiting.remove(sequence)
        self._blocks.hold(prefix.shared)
        blocks = list(prefix.shared)
        for _ in range(self.blocks_for(len(sequence.tokens)) - len(blocks)):
            block = self._blocks.take()
            assert block is not None
            blocks.append(block)
        sequence.enter(lane, self._free_slots.pop(), blocks, prefix.num_tokens, self._block_size)
        lane.prefilling[sequence] = None

    def begin_decode(self, sequence: SequenceState) -> None:
        """All known tokens are planned; from now on a token a step."""
        assert sequence.lane is not None
        sequence.phase = Phase.DECODE
        del sequence.lane.prefilling[sequence]
        sequence.lane.decoding[sequence] = None

    def fork(self, sequence: SequenceState) -> None:
        """Once the prompt is planned: let the request's other choices queue, to share its blocks."""
        request = sequence.request
        if sequence.num_computed < request.prompt_length:
            return
        for other in request.sequences:
            if other.phase is Phase.FORKING:
                other.block_keys = sequence.block_keys[: request.prompt_length // self._block_size]
                self.wait(other)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def register(self, sequence: SequenceState) -> None:
        """Make the sequence's full blocks findable whose tokens are known and computed or in flight.

        In flight is enough: workers run steps in order, so every later step reads what this one writes, and a step
        that fails ends the epoch and this cache with it.
        """
        if not self._prefix_cache:
            return
        size, known = self._block_size, min(sequence.num_computed, len(sequence.tokens))
        if known < sequence.next_registered:
            return
        keys = sequence.keys_of_full_blocks(size)
        for index in range(sequence.next_registered // size - 1, known // size):
            self._blocks.register(sequence.blocks[index], keys[index])
        sequence.next_registered = (known // size + 1) * size

    def grow(self, sequence: SequenceState) -> int | None:
        """One more block, preempting whoever ranks last; None if the sequence must wait, or was itself the last."""
        while (block := self._blocks.take()) is None:
            if sum(len(leaving.blocks) for leaving in self._leaving) > self.num_stalled:
                self.num_stalled += 1
                return None
            victim = max(self, key=lambda resident: resident.rank)
            self.preempt(victim)
            if victim is sequence:
                return None
        sequence.blocks.append(block)
        sequence.capacity += self._block_size
        return block

    def make_room(self, candidate: SequenceState, num_blocks: int, *, too_late: bool) -> bool:
        """Preempt for a waiting sequence: residents of a lower class, and paused ones (memory that serves nobody).

        One that is too late anyway does not outrank a lower class: that one waits in front of it, and would be back.
        Does nothing if that could not make a slot, `num_blocks` and the headroom available, or if they are on their
        way. Each victim gives its blocks and its share of the headroom. Returns True if somebody was preempted.
        """
        on_their_way = sum(len(leaving.blocks) for leaving in self._leaving)
        lacking = num_blocks + self.headroom - self._blocks.num_available - on_their_way
        lacks_slot = not self._free_slots and not self._leaving
        if lacking <= 0 and not lacks_slot:
            return False
        priority = candidate.request.priority
        victims = [
            resident
            for resident in self
            if (resident.request.priority > priority and not too_late)
            or (resident.request.is_paused and not resident.in_flight)
        ]
        if not victims or sum(len(victim.blocks) + 1 for victim in victims) < lacking:
            return False
        victims.sort(key=lambda resident: resident.rank, reverse=True)
        for victim in victims:
            lacking -= len(victim.blocks) + 1
            self.preempt(victim)
            if lacking <= 0:
                break
        return True

    def preempt(self, sequence: SequenceState) -> None:
        """Take slot and blocks away; the sequence queues again and computes its tokens anew, as a prefill."""
        sequence.phase = Phase.PREEMPTED
        self.num_preempted += 1
        self._vacate(sequence)

    def end(self, sequence: SequenceState) -> None:
        """The sequence is over, in whatever phase."""
        sequence.phase = Phase.ENDED
        self._waiting.remove(sequence)
        self._waiting.set_pending(sequence, 0)
        sequence.request.num_live -= 1
        if sequence.slot >= 0:
            self._vacate(sequence)

    def settle(self, sequence: SequenceState) -> None:
        """A step that named the sequence completed: give its holdings back if it was the last one to wait for."""
        if not sequence.in_flight and sequence in self._leaving:
            self._release(sequence)

    def _vacate(self, sequence: SequenceState) -> None:
        assert sequence.lane is not None
        sequence.lane.prefilling.pop(sequence, None)
        sequence.lane.decoding.pop(sequence, None)
        if sequence.in_flight:
            self._leaving[sequence] = None
        else:
            self._release(sequence)

    def _release(self, sequence: SequenceState) -> None:
        self._leaving.pop(sequence, None)
        self._blocks.release(sequence.blocks)
        self.closed_slots.append(sequence.slot)
        self._free_slots.append(sequence.slot)
        sequence.leave()
        if sequence.phase is Phase.PREEMPTED:
            self.wait(sequence)
