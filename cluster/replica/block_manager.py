"""Who holds which KV block, and which prefixes are still in memory. Knows block ids and keys, no sequences, no tensors.

Every block is in exactly one place: free (nothing worth keeping), cached (nobody holds it, its content has a key and
may be found again), or used (held at least once). Cached blocks are given away least recently used first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.prefix import BlockKey


class BlockObserver(Protocol):
    """Hears which prefixes this replica holds; for directories of prefixes."""

    def stored(self, key: BlockKey) -> None: ...
    def evicted(self, key: BlockKey) -> None: ...


class BlockManager:
    """A pool of `num_blocks` blocks, ids from 0."""

    def __init__(self, num_blocks: int, observer: BlockObserver | None = None) -> None:
        self._holders = [0] * num_blocks
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}  # in order of release: the first is the least recently used
        self._by_key: dict[BlockKey, int] = {}
        self._observer = observer
        self.num_blocks = num_blocks
        self.num_evicted = 0
        """Cached blocks given away since the start."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds but that can be found by their key."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def lookup(self, keys: Sequence[BlockKey]) -> list[int]:
        """The blocks of the longest prefix of `keys` in memory; nothing is held by asking."""
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def can_take(self, shared: Sequence[int], count: int) -> bool:
        """True if `shared` can be held and `count` blocks be taken besides."""
        idle = sum(1 for block in shared if not self._holders[block])
        return count + idle <= self.num_available

    def hold(self, blocks: Sequence[int]) -> None:
        """Hold blocks once more: cached ones, or ones that others hold too."""
        for block in blocks:
            if not self._holders[block]:
                del self._cached[block]
            self._holders[block] += 1

    def take(self) -> int | None:
        """A block to write to, held once; None if all are used."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block = next(iter(self._cached))
            self._evict(block)
        else:
            return None
        self._holders[block] = 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks, given in its order.

        The last go first, so that a prefix outlives what follows it: a block is useless without all before it.
        """
        for block in reversed(blocks):
            holders = self._holders[block] - 1
            if holders < 0:
                raise AssertionError(f"block {block} released by nobody's holder")
            self._holders[block] = holders
            if holders == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def register(self, block: int, key: BlockKey) -> None:
        """Make a held, full block findable. If another block already has the key, that one stays the one found."""
        if key in self._by_key or self._keys[block] is not None:
            return
        self._keys[block] = key
        self._by_key[key] = block
        if self._observer is not None:
            self._observer.stored(key)

    def _evict(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        self.num_evicted += 1
        del self._cached[block]
        del self._by_key[key]
        self._keys[block] = None
        if self._observer is not None:
            self._observer.evicted(key)
