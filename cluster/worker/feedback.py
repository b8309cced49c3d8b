"""Brings sampled tokens from the last stage back to the first. Knows the order of steps, not how the tokens travel.

Every step that samples feeds back exactly its tokens, so both ends count alike and nothing names a step on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from argosy.internal.v1 import step_pb2
from cluster.worker.slots import PreparedStep, Slots, awaited_slots
from model.batch import Int32Array


class FeedBack:
    """First stage's side: takes each step's tokens as late as possible, so that stages overlap."""

    def __init__(self, slots: Slots, take: Callable[[int], Int32Array], num_stages: int) -> None:
        """`take(count)` blocks until the next step's `count` tokens are there."""
        self._slots = slots
        self._take = take
        self._num_stages = num_stages
        self._outstanding: deque[Int32Array] = deque()

    def before(self, message: step_pb2.StepInput) -> None:
        """Record every token that the step builds on.

        Also those of steps that must be over by now, so that what is outstanding stays bounded when no later row
        asks for it.
        """
        awaited = awaited_slots(message)
        needed = 0
        for index, slots in enumerate(self._outstanding, start=1):
            if not awaited.isdisjoint(slots.tolist()):
                needed = index
        needed = max(needed, len(self._outstanding) - self._num_stages)
        for _ in range(needed):
            slots = self._outstanding.popleft()
            self._slots.record(slots, self._take(len(slots)))

    def after(self, prepared: PreparedStep) -> None:
        """Note that the step, once through the last stage, will feed its tokens back."""
        if len(prepared.sampled_slots):
            self._outstanding.append(prepared.sampled_slots)
