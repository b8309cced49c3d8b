"""Blocks are free, cached or used, never two of these, and prefixes outlive what follows them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.prefix import child_key, root_key
from cluster.replica.block_manager import BlockManager

KEYS = [child_key(root_key(b"", ""), [number]) for number in range(12)]


def take(manager: BlockManager, count: int) -> list[int]:
    blocks = [manager.take() for _ in range(count)]
    assert None not in blocks
    return blocks


def test_blocks_are_taken_until_none_is_left():
    manager = BlockManager(3)
    assert sorted(take(manager, 3)) == [0, 1, 2]
    assert manager.take() is None
    assert (manager.num_free, manager.num_cached, manager.num_used) == (0, 0, 3)


def test_a_registered_block_is_found_until_it_is_needed_for_something_else():
    manager = BlockManager(2)
    (block,) = take(manager, 1)
    manager.register(block, KEYS[0])
    manager.release([block])
    assert manager.lookup(KEYS[:1]) == [block]
    assert (manager.num_free, manager.num_cached, manager.num_used) == (1, 1, 0)
    take(manager, 2)
    assert manager.lookup(KEYS[:1]) == []


def test_lookup_ends_at_the_first_gap():
    manager = BlockManager(4)
    blocks = take(manager, 3)
    for index in (0, 2):
        manager.register(blocks[index], KEYS[index])
    assert manager.lookup(KEYS[:3]) == blocks[:1]


def test_least_recently_used_goes_first_and_a_prefix_last():
    manager = BlockManager(4)
    old, new = take(manager, 2), take(manager, 2)
    for block, key in zip([*old, *new], KEYS, strict=False):
        manager.register(block, key)
    manager.release(old)
    manager.release(new)
    assert take(manager, 4) == [old[1], old[0], new[1], new[0]]


def test_a_hit_makes_blocks_recent_again():
    manager = BlockManager(2)
    first, second = take(manager, 2)
    manager.register(first, KEYS[0])
    manager.register(second, KEYS[1])
    manager.release([first])
    manager.release([second])
    manager.hold([first])
    manager.release([first])
    assert take(manager, 1) == [second]


def test_a_shared_block_is_used_until_its_last_holder_lets_go():
    manager = BlockManager(1)
    blocks = take(manager, 1)
    manager.hold(blocks)
    manager.release(blocks)
    assert manager.num_used == 1
    manager.release(blocks)
    assert manager.num_used == 0
    with pytest.raises(AssertionError, match="released"):
        manager.release(blocks)


def test_the_first_block_of_a_key_stays_the_one_found():
    manager = BlockManager(2)
    first, second = take(manager, 2)
    manager.register(first, KEYS[0])
    manager.register(second, KEYS[0])
    manager.release([second])
    assert manager.lookup(KEYS[:1]) == [first]
    assert manager.num_free == 1, "the double is worth nothing"


@pytest.mark.parametrize(("num_shared", "count", "fits"), [(0, 4, True), (2, 2, True), (2, 3, False), (0, 5, False)])
def test_cached_blocks_that_are_shared_cannot_be_taken_too(num_shared, count, fits):
    manager = BlockManager(4)
    blocks = take(manager, 2)
    for block, key in zip(blocks, KEYS, strict=False):
        manager.register(block, key)
    manager.release(blocks)
    assert manager.can_take(blocks[:num_shared], count) is fits


class Machine(RuleBasedStateMachine):
    """Random use against a model: who holds what, and what is in the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[bytes, None] = {}
        self.manager = BlockManager(6, observer=self)
        self.held: list[list[int]] = []

    def stored(self, key: bytes) -> None:
        assert key not in self.told
        self.told[key] = None

    def evicted(self, key: bytes) -> None:
        del self.told[key]

    @rule(count=st.integers(1, 3))
    def take(self, count):
        blocks = [block for block in (self.manager.take() for _ in range(count)) if block is not None]
        assert not {block for other in self.held for block in other} & set(blocks)
        if blocks:
            self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self.manager.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def register(self, data, key):
        self.manager.register(data.draw(st.sampled_from([block for blocks in self.held for block in blocks])), key)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=3, unique=True))
    def share(self, keys):
        found = self.manager.lookup(keys)
        if found:
            self.manager.hold(found)
            self.held.append(found)

    @invariant()
    def every_block_is_in_one_place(self):
        used = {block for blocks in self.held for block in blocks}
        assert self.manager.num_used == len(used)
        assert self.manager.num_free + self.manager.num_cached + self.manager.num_used == self.manager.num_blocks

    @invariant()
    def observers_know_what_can_be_found(self):
        assert [key for key in KEYS if self.manager.lookup([key])] == [key for key in KEYS if key in self.told]


TestRandomUse = Machine.TestCase
TestRandomUse.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
