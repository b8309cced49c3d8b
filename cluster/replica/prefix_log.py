"""What a replica's prefix cache holds, told in two ways: every change to routers near by, a small sample to all others.

Knows names of blocks and when they come and go; no requests, no sockets. A sample keeps the blocks whose names begin
with enough zero bits, so every replica and router agrees on which blocks could be in it, whatever the prompts.
"""

from __future__ import annotations

import weakref

import numpy as np

from argosy.internal.v1 import control_pb2, replica_pb2
from cluster.prefix import BlockKey, block_name

SUMMARY_NAMES = 2048
"""Most names of a sample: 16 KiB."""
SUMMARY_SECONDS = 4.0
"""Least time between two samples: at most 4 KiB a second for each router of another region."""


class BlockNews:
    """What one router has yet to be told. Never more than the whole cache."""

    def __init__(self, held: set[int]) -> None:
        self._held = held
        self._changes: dict[int, bool] = {}
        self._from_scratch = True

    @property
    def is_empty(self) -> bool:
        return not (self._from_scratch or self._changes)

    def note(self, name: int, *, is_held: bool) -> None:
        """A block came or went."""
        if self._from_scratch:
            return
        self._changes[name] = is_held
        if len(self._changes) > 64 + 2 * len(self._held):
            # A router that reads too slowly is told again from the beginning.
            self._changes.clear()
            self._from_scratch = True

    def take(self) -> replica_pb2.BlockEvents:
        """Everything since the last time."""
        if self._from_scratch:
            self._from_scratch = False
            return replica_pb2.BlockEvents(complete=True, stored=self._held)
        changes, self._changes = self._changes, {}
        return replica_pb2.BlockEvents(
            stored=[name for name, is_held in changes.items() if is_held],
            evicted=[name for name, is_held in changes.items() if not is_held],
        )


class PrefixLog:
    """A `BlockObserver` of one epoch."""

    def __init__(self) -> None:
        self._held: set[int] = set()
        self._listeners: weakref.WeakSet[BlockNews] = weakref.WeakSet()
        self._version = 0
        self._summary = control_pb2.PrefixSummary(version=1)
        self._summarised_at = float("-inf")
        self._summarised_version = 0

    def listen(self) -> BlockNews:
        """The news of one more router; they end when it lets them go."""
        news = BlockNews(self._held)
        self._listeners.add(news)
        return news

    def stored(self, key: BlockKey) -> None:
        name = block_name(key)
        self._held.add(name)
        self._tell(name, is_held=True)

    def evicted(self, key: BlockKey) -> None:
        name = block_name(key)
        self._held.discard(name)
        self._tell(name, is_held=False)

    def summary(self, now: float) -> control_pb2.PrefixSummary:
        """The sample for other regions, at most `SUMMARY_SECONDS` old."""
        if self._version != self._summarised_version and now - self._summarised_at >= SUMMARY_SECONDS:
            self._summarised_at, self._summarised_version = now, self._version
            level, names = sample(self._held, SUMMARY_NAMES)
            self._summary = control_pb2.PrefixSummary(version=self._summary.version + 1, level=level, names=names)
        return self._summary

    def _tell(self, name: int, *, is_held: bool) -> None:
        self._version += 1
        for news in self._listeners:
            news.note(name, is_held=is_held)


def sample(held: set[int], most: int) -> tuple[int, list[int]]:
    """The lowest level of which there are at most `most` names, and those names."""
    names = np.fromiter(held, np.uint64, len(held))
    level = 0
    while len(names) > most:
        level += 1
        names = names[names < np.uint64(1 << (64 - level))]
    return level, names.tolist()
