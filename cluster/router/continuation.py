"""A live stream that outlasts its replicas: what was emitted, and going on from there at another one.

Generation depends on prompt, emitted tokens, seed, choice and position alone, so a replica that is given those goes on
exactly where another stopped. Knows tokens and positions; no text, no clients.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from argosy.internal.v1 import replica_pb2
from cluster.clock import Clock
from cluster.errors import Reason, ServiceError
from cluster.ids import ModelName
from cluster.logs import about
from cluster.router.attempt import WINDOW_TOKENS, Attempt, ReplicaAddress, ReplicaLostError
from cluster.router.fleet import Fleet
from cluster.router.validate import duration_of
from cluster.telemetry.tracing import NO_SPAN, Attributes, Span

log = logging.getLogger(__name__)

FIRST_PATIENCE_SECONDS = 5.0
"""How long a new request waits for any replica. A stream that has begun waits until its deadline."""
RETRY_SECONDS = 0.05
"""Pause between looks for a replica."""
DEADLINE_MARGIN_SECONDS = 0.1
"""A stream gives up this long before its deadline, so that the client hears why."""
MAX_FRUITLESS_ATTEMPTS = 4
"""Replicas in a row that may be lost without one token: beyond, it may be the request that kills them."""
MAX_SUSPICIONS = 2
"""Replicas that may lose a rank in the request's first steps there: it is not tried again."""


CHOICE_ENDS = (replica_pb2.END_REASON_STOP, replica_pb2.END_REASON_LENGTH)
"""Endings that are the answer's own; the others are of the replica or the deadline."""


@dataclass(slots=True)
class News:
    """What one choice gained, in order."""

    choice: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[replica_pb2.TokenLogprobsData] = field(default_factory=list)
    end: int = replica_pb2.END_REASON_UNSPECIFIED
    """STOP (the last token is the stop token) or LENGTH, once the choice is over."""


class Positions:
    """Exactly which tokens of each choice were accepted: drops what comes twice, refuses gaps."""

    def __init__(self, choices: Iterable[int], max_tokens: int) -> None:
        self.emitted: dict[int, list[int]] = {choice: [] for choice in choices}
        """Of the choices that are not over."""
        self._max_tokens = max_tokens

    @property
    def is_over(self) -> bool:
        return not self.emitted

    @property
    def num_emitted(self) -> int:
        """Tokens of the choices that are not over."""
        return sum(map(len, self.emitted.values()))

    def close(self, choice: int) -> None:
        """The choice is over."""
        self.emitted.pop(choice, None)

    def accept(self, delta: replica_pb2.TokenDelta, news: dict[int, News]) -> None:
        """Add a delta's new tokens to `news`.

        Raises:
            ReplicaLostError: tokens are missing before the delta's first.
        """
        choice = delta.choice
        emitted = self.emitted.get(choice)
        if emitted is None:
            return
        token_ids: Sequence[int] = delta.token_ids
        known = len(emitted) - delta.first_index
        if known < 0:
            raise ReplicaLostError(f"it skipped {-known} tokens")
        logprobs: Sequence[replica_pb2.TokenLogprobsData] = delta.logprobs
        if known > 0:
            token_ids, logprobs = token_ids[known:], logprobs[known:]
        end = delta.end if delta.end in CHOICE_ENDS else replica_pb2.END_REASON_UNSPECIFIED
        if not token_ids and not end:
            return
        entry = news.get(choice)
        if entry is None:
            entry = news[choice] = News(choice)
        emitted += token_ids
        entry.token_ids += token_ids
        entry.logprobs += logprobs
        # A replica may die between the last token and saying that it was the last.
        entry.end = end or (replica_pb2.END_REASON_LENGTH if len(emitted) >= self._max_tokens else end)
        if entry.end:
            self.close(choice)


class LiveStream:
    """One request, wherever it runs."""

    def __init__(
        self,
        spec: replica_pb2.GenerationSpec,
        model: ModelName,
        blocks: Sequence[int],
        fleet: Fleet,
        clock: Clock,
        deadline: float,
        linger: float = 0.0,
        regions: Collection[str] = (),
        span: Span = NO_SPAN,
    ) -> None:
        """
        Args:
            spec: the request as its client knows it: before its first token, or with what another router told of it.
            blocks: names of the prompt's blocks.
            deadline: in the clock's monotonic seconds.
            linger: seconds that news after the first may wait for more.
            regions: that may serve it; empty: all.
            span: of the request; each attempt is a part of it.
        """
        self.cached_prompt_tokens = 0
        """As the first replica said: what the client's prompt cost."""
        self.num_attempts = 0
        self.sent_at: float | None = None
        """When a replica was first sent the request."""
        self.gaps: list[float] = []
        """Seconds from each loss of a replica to the next token."""
        self.device_seconds = 0.0
        """What all attempts have used, as far as replicas told."""
        self._lost_at: float | None = None
        self._span = span
        self._about = about(request=spec.request_id)
        self._attempt_span: Span = NO_SPAN
        self._spec = spec
        self._model = model
        self._blocks = blocks
        self._regions = regions
        self._fleet = fleet
        self._clock = clock
        self._deadline = deadline
        self._linger = linger
        self._linger_next = 0.0
        self._positions = Positions((choice.index for choice in spec.choices), spec.max_tokens)
        for choice in spec.choices:
            self._positions.emitted[choice.index] += choice.emitted_token_ids
        self._has_begun = self._positions.num_emitted > 0
        self._attempt: Attempt | None = None
        self._failed_at: set[ReplicaAddress] = set()
        self._fruitless = 0
        self._suspicions = 0
        self._ended_at_replica = True
        self._error: ServiceError | None = None

    @property
    def reserved_tokens(self) -> int:
        """Most tokens that it may make, all choices together."""
        return self._spec.max_tokens * max(1, len(self._spec.choices))

    @property
    def is_over(self) -> bool:
        """True if every choice has ended."""
        return self._positions.is_over

    async def next(self) -> list[News]:
        """What came since the last call, at most one entry a choice; waits for something, moving on if a replica dies.

        Raises:
            ServiceError: the stream cannot be completed.
        """
        while True:
            if self._error is not None:
                raise self._error
            try:
                attempt = self._attempt or await self._begin()
                news = self._accept(await attempt.take(self._linger_next))
            except ReplicaLostError as error:
                if self._error is None:
                    self._leave(str(error))
                continue
            if news:
                self._fruitless = self._suspicions = 0
                if self._lost_at is not None:
                    self.gaps.append(self._clock.monotonic() - self._lost_at)
                    self._lost_at = None
                self._linger_next = self._linger
                return news

    def release(self) -> None:
        """What `next` returned has been passed on."""
        if self._attempt is not None:
            self._attempt.release()

    def close_choice(self, choice: int, *, by_replica: bool) -> None:
        """The choice is over; unless its replica ended it, what that still makes is not wanted."""
        self._positions.close(choice)
        self._ended_at_replica &= by_replica

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._attempt is not None:
            self._attempt.close(tell=not (self.is_over and self._ended_at_replica))
            self._attempt = None
        self._attempt_span.end("" if self.is_over else "given up by the router or its client")

    def fail(self, error: ServiceError) -> None:
        """Make `next` raise: the router ends the stream."""
        self._error = error
        if self._attempt is not None:
            self._attempt.lose("the router ended it")

    def _accept(self, deltas: Sequence[replica_pb2.TokenDelta]) -> list[News]:
        news: dict[int, News] = {}
        lost = None
        self._suspicions += any(delta.suspect for delta in deltas)
        for delta in deltas:
            self.device_seconds += delta.device_seconds
            if delta.end >= replica_pb2.END_REASON_DEADLINE:
                lost = self._failure(delta) or lost
            try:
                self._positions.accept(delta, news)
            except ReplicaLostError as error:
                lost = str(error)
            if delta.cached_prompt_tokens and self.num_attempts == 1:
                self.cached_prompt_tokens = delta.cached_prompt_tokens
        if lost is not None:
            self._leave(lost)
        return list(news.values())

    def _failure(self, delta: replica_pb2.TokenDelta) -> str | None:
        """Why the request must go on elsewhere.

        Raises:
            ServiceError: it would fail elsewhere too.
        """
        if delta.choice not in self._positions.emitted:
            return None
        if delta.end == replica_pb2.END_REASON_DEADLINE:
            raise ServiceError(Reason.DEADLINE)
        if delta.end == replica_pb2.END_REASON_SUPERSEDED:
            raise ServiceError(Reason.RESUMED_ELSEWHERE)
        if delta.end == replica_pb2.END_REASON_REFUSED:
            log.error("refused by its replica: %s", delta.detail, extra=self._about)
            # Of a grammar, more may show while it is followed than when it is compiled.
            raise ServiceError(Reason.REFUSED, delta.detail if self._spec.HasField("grammar") else "")
        return f"it gave the request up: {delta.detail or 'no reason'}"

    def _leave(self, why: str) -> None:
        """Give the present attempt up and remember where not to go next."""
        if self._attempt is None:
            return
        target = self._attempt.target
        log.warning("leaves %s (epoch %d): %s", target.replica_id, target.epoch, why, extra=self._about)
        self._failed_at.add(target)
        self._lost_at = self._lost_at or self._clock.monotonic()
        self._attempt.close(tell=True)
        self._attempt = None
        self._attempt_span.end(why)
        self._fruitless += 1

    async def _begin(self) -> Attempt:
        """Send the request, with what was emitted, to the best replica; waits while there is none.

        Raises:
            ServiceError: there is none in time.
            ReplicaLostError: it was lost in this very moment.
        """
        if self._suspicions >= MAX_SUSPICIONS:
            log.error("quarantined: %d replicas lost a rank in its first steps", MAX_SUSPICIONS, extra=self._about)
            raise ServiceError(Reason.QUARANTINED)
        if self._fruitless >= MAX_FRUITLESS_ATTEMPTS:
            raise ServiceError(Reason.REPLICA_LOST, retry_after=1.0)
        begun = self._clock.monotonic()
        has_begun = self._has_begun
        give_up = self._deadline - DEADLINE_MARGIN_SECONDS
        if not has_begun:
            give_up = min(give_up, begun + FIRST_PATIENCE_SECONDS)
        tokens = len(self._spec.prompt_token_ids) + self._positions.num_emitted
        while True:
            choice = self._fleet.choose(
                self._model, tokens, self._spec.max_tokens, self._blocks, self._failed_at, self._regions
            )
            if choice is not None:
                break
            if self._clock.monotonic() >= give_up:
                raise ServiceError(Reason.REPLICA_LOST if has_begun else Reason.NO_REPLICA, retry_after=1.0)
            await self._clock.sleep(RETRY_SECONDS)
            if self._error is not None:
                raise self._error
            # Better a replica that failed once than none; a rebuilt one has another epoch and is not in the set.
            self._failed_at.clear()
        self.num_attempts += 1
        target = choice.replica.connection.target
        attributes: Attributes = {"argosy.replica": target.replica_id, "argosy.epoch": target.epoch}
        self._attempt_span = self._span.child(f"attempt {self.num_attempts}", "client", attributes)
        self._attempt = choice.replica.connection.submit(self._resumed_spec())
        self._has_begun = True
        self.sent_at = self.sent_at or self._clock.monotonic()
        uncached = max(1, tokens - choice.cached_tokens)
        choice.replica.sent(uncached, len(self._positions.emitted), self._blocks, self._clock.monotonic())
        return self._attempt

    def _resumed_spec(self) -> replica_pb2.GenerationSpec:
        """The request as it is now: the choices that are not over, with their tokens, and the time that is left."""
        spec = replica_pb2.GenerationSpec()
        spec.CopyFrom(self._spec)
        del spec.choices[:]
        for choice, emitted in self._positions.emitted.items():
            spec.choices.add(index=choice, emitted_token_ids=emitted)
        spec.time_left.CopyFrom(duration_of(self._deadline - self._clock.monotonic()))
        spec.initial_credit = WINDOW_TOKENS
        spec.suspect = self._suspicions > 0
        spec.traceparent = self._attempt_span.traceparent
        return spec
