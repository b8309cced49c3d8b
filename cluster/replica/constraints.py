"""Where each constrained choice is in its grammar, and which tokens may come next: masks, computed beside the loop.

A mask usually takes a fraction of a millisecond, so the loop waits for it and the choice is in the next step. One whose
grammar once took longer is never waited for again: it slows itself down, no other, and not for long. Knows no steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from llguidance import LLMatcher

from argosy.internal.v1 import replica_pb2
from cluster.grammar.language import KINDS, MAX_GRAMMAR_BYTES, Grammar
from cluster.replica.grammars import Grammars
from cluster.replica.plan import PlannedRow, Refused, RequestKey

PATIENCE_SECONDS: Final = 0.002
"""How long a step may be held up by one mask."""
PATIENCE_SECONDS_EACH: Final = 0.0002
"""And by each of many: a few times what most take."""
ALLOWANCE_SECONDS: Final = 1.0
"""CPU time that a request may take for its masks besides `PATIENCE_SECONDS` a token."""

logger = logging.getLogger(__name__)

ChoiceKey = tuple[RequestKey, int]


class Place:
    """One choice's place in its grammar."""

    __slots__ = ("allowance", "has_failed", "is_slow", "mask", "matcher")

    def __init__(self, matcher: LLMatcher, allowance: float) -> None:
        self.matcher = matcher
        self.allowance = allowance
        """Seconds of CPU time that are left."""
        self.mask = b""
        """One bit a token that may come next."""
        self.is_slow = False
        self.has_failed = False

    def begin(self, emitted: Sequence[int]) -> bool:
        """Go on after tokens that were emitted elsewhere; False if the grammar does not allow them."""
        allowed = self.matcher.consume_tokens(list(emitted))
        self._look_ahead()
        return allowed and not self.has_failed

    def advance(self, token: int) -> None:
        """Take the sampled token."""
        # CPU time: on a busy machine an honest grammar must not pay for what others do.
        began = time.thread_time()
        self.matcher.consume_token(token)
        self._look_ahead()
        excess = time.thread_time() - began - PATIENCE_SECONDS
        if excess > 0:
            self.is_slow = True
            self.allowance -= excess
            self.has_failed |= self.allowance < 0

    def _look_ahead(self) -> None:
        mask = self.matcher.compute_bitmask()
        self.has_failed = self.matcher.is_error() or not any(mask)
        self.mask = mask


class Constraints:
    """The constrained choices of one engine. Used from its loop alone; only masks are computed on other threads."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._places: dict[ChoiceKey, Place] = {}
        self._batch: list[tuple[ChoiceKey, Place, int]] = []
        self._done: deque[tuple[ChoiceKey, Place]] = deque()
        self._quick = ThreadPoolExecutor(1, "masks")
        self._slow = ThreadPoolExecutor(1, "slow-masks")

    async def open(self, spec: replica_pb2.GenerationSpec) -> dict[int, Place]:
        """The places of a request's choices after their emitted tokens, to be given to `admit`.

        Raises:
            Refused: the grammar cannot be followed, or does not allow what was emitted.
        """
        first = await self._grammars.matcher(read_grammar(spec.grammar))
        share = ALLOWANCE_SECONDS / len(spec.choices)
        places = {choice.index: Place(first.deep_copy(), share) for choice in spec.choices}
        for choice in spec.choices:
            if not await asyncio.to_thread(places[choice.index].begin, choice.emitted_token_ids):
                raise Refused("grammar: it is too costly to follow, or does not allow the emitted tokens")
        return places

    def admit(self, key: RequestKey, places: dict[int, Place]) -> None:
        """The request runs from now on."""
        self._places.update({(key, choice): place for choice, place in places.items()})

    def forget(self, key: RequestKey, choice: int) -> None:
        """The choice is over; unknown ones are ignored."""
        self._places.pop((key, choice), None)

    def masks(self, rows: Sequence[PlannedRow]) -> dict[int, bytes]:
        """Which tokens each row of a step may sample, by index of the row; rows without a grammar are left out."""
        if not self._places:
            return {}
        places = ((index, self._places.get((row.key, row.choice))) for index, row in enumerate(rows) if row.samples)
        return {index: place.mask for index, place in places if place is not None}

    def advance(self, key: RequestKey, choice: int, token: int) -> None:
        """The choice went on; `settle` starts to compute its next mask. Unconstrained choices are ignored."""
        place = self._places.get((key, choice))
        if place is not None:
            self._batch.append(((key, choice), place, token))

    def settle(self, on_ready: Callable[[], None]) -> list[tuple[ChoiceKey, bool]]:
        """Choices that have their next mask since the last call, each with whether its grammar can be followed on.

        Waits a moment for the quick ones. `on_ready` is called, in the event loop, when more are ready.
        """
        if self._batch:
            self._start(on_ready)
        ready = []
        while self._done:
            key, place = self._done.popleft()
            if self._places.get(key) is place:
                ready.append((key, not place.has_failed))
        return ready

    def close(self) -> None:
        """Compute nothing more."""
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(wait=False, cancel_futures=True)
        self._grammars.close()

    def _start(self, on_ready: Callable[[], None]) -> None:
        """Have the masks of all that went on computed; the quick ones together, for they are soon done."""
        loop = asyncio.get_running_loop()

        def tell(_: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(on_ready)

        batch, self._batch = self._batch, []
        for entry in batch:
            if entry[1].is_slow:
                self._slow.submit(self._compute, [entry]).add_done_callback(tell)
        if quick := [entry for entry in batch if not entry[1].is_slow]:
            job = self._quick.submit(self._compute, quick)
            if not wait((job,), PATIENCE_SECONDS + PATIENCE_SECONDS_EACH * len(quick)).done:
                job.add_done_callback(tell)

    def _compute(self, batch: Sequence[tuple[ChoiceKey, Place, int]]) -> None:
        for _, place, token in batch:
            try:
                place.advance(token)
            except BaseException:  # the library's panics are no Exceptions; whatever it was, it is this choice's end
                logger.exception("a mask could not be computed")
                place.has_failed = True
        # Together, so that those who ran in one step stay together.
        self._done.extend((key, place) for key, place, _ in batch)


def read_grammar(spec: replica_pb2.GrammarSpec) -> Grammar:
    """The wire's grammar.

    Raises:
        Refused: there is none, or one longer than routers let through.
    """
    kind = next((kind for kind in KINDS if kind == spec.WhichOneof("grammar")), None)
    if kind is None:
        raise Refused("grammar: has no kind")
    text = str(getattr(spec, kind))
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise Refused(f"grammar: longer than {MAX_GRAMMAR_BYTES} bytes")
    return Grammar(kind, text)
