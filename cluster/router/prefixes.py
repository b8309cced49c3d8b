"""Which replicas hold how much of a prompt: one bit a replica for each block that any of them holds or was promised.

Knows names of blocks (`cluster.prefix.block_name`) and slots (small numbers, one a replica); no replicas, no loads. A
replica tells either every block, or a sample: the blocks of its `level` and above. An estimate in both cases: a wrong
guess costs time, never correctness. Takes about 250 bytes for each block of each replica.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

from cluster.prefix import block_level

NUM_LEVELS = 65
PROMISE_SECONDS = 60.0
"""A block that was promised so long ago, and of which the replica has not told, was given up before it was computed."""


class _Slot:
    """What is known of one replica."""

    def __init__(self) -> None:
        self.level = 0
        self.told: set[int] = set()
        self.promised: OrderedDict[int, float] = OrderedDict()
        """Until when each promise counts, soonest first."""


class PrefixIndex:
    """Leading blocks that each replica has, for any prompt."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._slots: dict[int, _Slot] = {}
        self._unsampled = [0] * NUM_LEVELS
        """By level of a name: replicas whose sample would not have it."""

    def __len__(self) -> int:
        """Blocks that somebody holds."""
        return len(self._holders)

    def join(self) -> int:
        """A slot for a replica of which nothing is known yet: the smallest free number."""
        slot = next(number for number in range(len(self._slots) + 1) if number not in self._slots)
        self._slots[slot] = _Slot()
        return slot

    def leave(self, slot: int) -> None:
        """Forget a replica; its slot may be given to another."""
        self._replace(slot, 0, ())
        gone = self._slots[slot]
        self._unset(slot, gone.promised)
        del self._slots[slot]

    def hear(self, slot: int, stored: Iterable[int], evicted: Iterable[int], *, complete: bool) -> None:
        """A replica tells what changed; `complete`: `stored` is all that it holds."""
        if complete:
            self._replace(slot, 0, ())
        known = self._slots[slot]
        for name in stored:
            known.told.add(name)
            known.promised.pop(name, None)
            self._set(slot, name)
        for name in evicted:
            known.told.discard(name)
            if name not in known.promised:
                self._unset(slot, (name,))

    def summarise(self, slot: int, level: int, names: Collection[int]) -> None:
        """A replica's sample; replaces what it told before."""
        self._replace(slot, min(level, NUM_LEVELS - 1), names)

    def promise(self, slot: int, names: Sequence[int], now: float) -> None:
        """A request with these blocks was sent there: it will hold them soon."""
        known = self._slots[slot]
        while known.promised and next(iter(known.promised.values())) <= now:
            name, _ = known.promised.popitem(last=False)
            if name not in known.told:
                self._unset(slot, (name,))
        for name in names:
            if name not in known.told:
                known.promised[name] = now + PROMISE_SECONDS
                known.promised.move_to_end(name)
                self._set(slot, name)

    def cached_blocks(self, names: Sequence[int]) -> list[int]:
        """By slot, how many leading blocks of a prompt it has. Of a sample, up to the last block that is in it."""
        cached = [0] * (max(self._slots, default=-1) + 1)
        sampled = alive = 0
        for slot, known in self._slots.items():
            alive |= 1 << slot
            sampled |= (known.level > 0) << slot
        found: list[tuple[int, int]] = []
        depth = 0
        for name in names:
            holding = alive & self._holders.get(name, 0)
            if holding != alive:
                # A block that the sample leaves out may be there: whoever has what comes later has it too.
                surviving = holding | (alive & self._unsampled[block_level(name)]) if sampled else holding
                _note(cached, alive & ~surviving & ~sampled, depth)
                alive = surviving
                if not alive:
                    break
            depth += 1
            if hits := holding & sampled:
                found.append((depth, hits))
        _note(cached, alive & ~sampled, depth)
        for depth, hits in reversed(found):
            _note(cached, hits & sampled, depth)
            sampled &= ~hits
        return cached

    def _replace(self, slot: int, level: int, names: Collection[int]) -> None:
        known = self._slots[slot]
        fresh = set(names)
        self._unset(slot, (name for name in known.told - fresh if name not in known.promised))
        for name in fresh - known.told:
            self._set(slot, name)
        known.told = fresh
        for lower in range(NUM_LEVELS):
            bit = 1 << slot
            self._unsampled[lower] = self._unsampled[lower] | bit if lower < level else self._unsampled[lower] & ~bit
        known.level = level

    def _set(self, slot: int, name: int) -> None:
        self._holders[name] = self._holders.get(name, 0) | 1 << slot

    def _unset(self, slot: int, names: Iterable[int]) -> None:
        holders, others = self._holders, ~(1 << slot)
        for name in names:
            left = holders.get(name, 0) & others
            if left:
                holders[name] = left
            else:
                holders.pop(name, None)


def _note(cached: list[int], slots: int, depth: int) -> None:
    """Write `depth` for every slot in the mask."""
    while slots:
        lowest = slots & -slots
        cached[lowest.bit_length() - 1] = depth
        slots ^= lowest
