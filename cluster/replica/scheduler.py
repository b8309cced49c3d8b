"""Which tokens each step computes: continuous batching with chunked prefill over paged blocks. Pure: time comes in as
`now`, plans go out, and nothing is known of tensors, wires or processes.

1. `submit` queues a request's choices; the first computes the prompt, the others fork from it.
2. `plan` picks the next lane with work and fills a step: every decode, then prefill chunks by slack.
3. Up to `num_lanes + 1` steps are in flight: a decode is planned before the token it continues is known.
4. `complete` takes a step's tokens: stop, length, events. Tokens of what ended meanwhile are thrown away.
5. `cancel` and `expire` end requests in any phase; slots and blocks return when no step in flight names them.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.prefix import root_key
from cluster.replica.block_manager import BlockManager, BlockObserver
from cluster.replica.fair_share import Account, FairShares
from cluster.replica.plan import (
    EndReason,
    LoadSnapshot,
    Refused,
    Request,
    RequestKey,
    SchedulerConfig,
    SequenceEvent,
    StepPlan,
    StepStatistics,
)
from cluster.replica.rates import PrefillRate, PrefillShare
from cluster.replica.residents import Lane, Residents
from cluster.replica.sequence import Phase, RequestState, SequenceState
from cluster.replica.step_builder import StepBuilder
from cluster.replica.waiting import WaitingQueue


@dataclass(slots=True)
class _Flight:
    """A planned step whose result is still out."""

    plan: StepPlan
    sequences: list[SequenceState]
    sampling_slots: list[int]
    copy_sources: list[int]
    hit_tokens: int
    planned_at: float


class Scheduler:
    """Continuous batching for one replica."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        block_observer: BlockObserver | None = None,
        step_observer: Callable[[StepStatistics], None] | None = None,
    ) -> None:
        self.config = config
        self.blocks = BlockManager(config.num_blocks, block_observer)
        self._step_observer = step_observer
        self._rate = PrefillRate(config.prefill_seconds_per_token)
        self._shares = FairShares(config.fair_quantum_seconds)
        self._waiting = WaitingQueue(config, self._rate, self._shares)
        self._residents = Residents(config, self.blocks, self._waiting)
        self._requests: dict[RequestKey, RequestState] = {}
        self._deadlines: list[tuple[float, int, RequestKey]] = []
        self._numbers = itertools.count()
        self._flights: deque[_Flight] = deque()
        self._next_lane = 0
        self._step = 0
        self._completed_at = -math.inf
        self._share = PrefillShare()
        self._missed_tokens = 0
        self._hit_tokens = 0

    @property
    def has_work(self) -> bool:
        """False: nothing will come of `plan`, `complete` or `expire` until the next `submit`."""
        return bool(self._requests or self._flights)

    @property
    def num_preempted(self) -> int:
        """Sequences that lost slot and blocks, since the start."""
        return self._residents.num_preempted

    @property
    def next_deadline(self) -> float:
        """When `expire` has something to do next; infinity if never."""
        while self._deadlines and not self._is_live(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def submit(self, request: Request, now: float) -> None:
        """Queue a request.

        Raises:
            Refused: it could not run even alone.
            ValueError: a request of that key lives already.
        """
        if request.key in self._requests:
            raise ValueError(f"request {request.key!r} lives already")
        self._check_fits(request)
        root = root_key(request.cache_domain, self.config.model_revision)
        state = RequestState(request, root, next(self._numbers), now + self.config.patience_seconds)
        self._requests[request.key] = state
        self._shares.enter(state.account)
        if state.deadline < math.inf:
            if len(self._deadlines) > 64 + 2 * len(self._requests):
                self._deadlines = [entry for entry in self._deadlines if self._is_live(entry)]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (state.deadline, state.number, state.key))
        first, *others = state.sequences
        for sequence in others:
            sequence.phase = Phase.FORKING
        self._residents.wait(first)

    def cancel(self, key: RequestKey) -> None:
        """Give a request up in whatever phase; unknown keys (it may just have ended) are ignored. No event follows."""
        state = self._requests.pop(key, None)
        if state is not None:
            self._shares.leave(state.account)
            for sequence in state.sequences:
                if sequence.phase is not Phase.ENDED:
                    self._residents.end(sequence)

    def add_credit(self, key: RequestKey, tokens: int) -> None:
        """Let a request generate `tokens` more; unknown keys and requests without a limit are ignored."""
        state = self._requests.get(key)
        if state is not None and state.credit is not None:
            self._give_credit(state, tokens)

    def permit(self, key: RequestKey, choice: int) -> None:
        """Let a choice of a request that `needs_permits` sample one token more; unknown ones are ignored."""
        state = self._requests.get(key)
        for sequence in state.sequences if state is not None else ():
            if sequence.choice == choice:
                sequence.may_sample = True
                self._queue_again(sequence)

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None if nothing can run before a step completes, credit, a permit or a request comes."""
        if len(self._flights) > self.config.num_lanes or not self._may_look_ahead():
            return None
        lanes = self._residents.lanes
        for offset in range(len(lanes)):
            lane = lanes[(self._next_lane + offset) % len(lanes)]
            draft = StepBuilder(self.config, self._residents, self.blocks, self._waiting, lane, now)
            draft.fill()
            if draft.rows:
                self._next_lane = lane.index + 1
                return self._launch(draft, lane, now)
        return None

    def complete(self, step: int, sampled: Sequence[tuple[int, int]], now: float) -> list[SequenceEvent]:
        """Take the (slot, token) pairs of the oldest step in flight, in row order.

        Raises:
            ValueError: another step, or other slots, than were planned: the workers no longer follow.
        """
        flight = self._flights[0] if self._flights else None
        if flight is None or flight.plan.step != step:
            raise ValueError(f"step {step} completed, expected {flight.plan.step if flight else 'none'}")
        slots = [slot for slot, _ in sampled]
        if slots != flight.sampling_slots:
            raise ValueError(f"step {step} sampled slots {slots}, expected {flight.sampling_slots}")
        self._flights.popleft()
        self._measure(flight, now)
        events: list[SequenceEvent] = []
        tokens = iter(sampled)
        for row, sequence in zip(flight.plan.rows, flight.sequences, strict=True):
            sequence.in_flight -= 1
            if row.samples:
                _, token = next(tokens)
                if sequence.phase is Phase.ENDED:
                    self._give_credit(sequence.request, 1)
                else:
                    events.append(self._accept(sequence, token))
            if not sequence.in_flight:
                self._residents.settle(sequence)
        self.blocks.release(flight.copy_sources)
        return events

    def expire(self, now: float) -> list[SequenceEvent]:
        """End every request whose deadline is not after `now`."""
        events: list[SequenceEvent] = []
        while self.next_deadline <= now and self._deadlines:
            state = self._requests[heapq.heappop(self._deadlines)[2]]
            for sequence in state.sequences:
                if sequence.phase is not Phase.ENDED:
                    index = len(sequence.tokens) - state.prompt_length
                    cached = state.report()
                    events.append(SequenceEvent(state.key, sequence.choice, index, (), EndReason.DEADLINE, cached))
                    self._end(sequence)
        if not self._flights:
            self._share.add(now, 0.0)
        return events

    def load(self) -> LoadSnapshot:
        """What routers choose by."""
        decoding = [sequence for lane in self._residents.lanes for sequence in lane.decoding]
        return LoadSnapshot(
            running=len(decoding),
            waiting=len(self._waiting),
            pending_prefill_tokens=self._waiting.pending_tokens,
            context_tokens=sum(sequence.num_computed for sequence in decoding),
            used_blocks=self.blocks.num_used,
            total_blocks=self.blocks.num_blocks,
            prefill_share=self._share.value,
            missed_tokens=self._missed_tokens,
            hit_tokens=self._hit_tokens,
        )

    def _check_fits(self, request: Request) -> None:
        config, prompt = self.config, len(request.prompt)
        length = prompt + request.max_tokens
        if not prompt or not request.choices or request.max_tokens < 1:
            raise Refused("needs a prompt, a choice and max_tokens of at least 1")
        if any(len(start.emitted) >= request.max_tokens for start in request.choices):
            raise Refused("a choice has max_tokens tokens already")
        if length > config.context_length:
            raise Refused(f"prompt and max_tokens are {length} tokens, the context is {config.context_length}")
        shared = prompt // config.block_size
        own = self._residents.blocks_for(length - 1) - shared  # the last token is never computed
        needed = shared + own * len(request.choices)
        if needed > config.num_blocks:
            raise Refused(
                f"needs {needed * config.block_size} tokens of KV memory, there are "
                f"{config.num_blocks * config.block_size}"
            )

    def _may_look_ahead(self) -> bool:
        """Beyond a step a lane, only while what is in flight takes less than `look_ahead_seconds` of prefill.

        And only if somebody runs who needs no permits: the others cannot be planned ahead, so they would fall into two
        groups that take turns, and each step would do half the work.
        """
        if len(self._flights) < self.config.num_lanes:
            return True
        if all(state.needs_permits for state in self._requests.values()):
            return False
        tokens = sum(flight.plan.num_prefill_tokens for flight in self._flights)
        return tokens * self._rate.seconds_per_token <= self.config.look_ahead_seconds

    def _launch(self, draft: StepBuilder, lane: Lane, now: float) -> StepPlan:
        self._step += 1
        closed, self._residents.closed_slots = tuple(self._residents.closed_slots), []
        plan = StepPlan(
            step=self._step,
            lane=lane.index,
            rows=tuple(draft.rows),
            opened=tuple(draft.opened),
            closed_slots=closed,
            block_copies=tuple(draft.block_copies),
            num_prefill_tokens=draft.num_prefill_tokens,
            num_decode_tokens=draft.num_decode_tokens,
            context_tokens=draft.context_tokens,
        )
        sampling = [row.slot for row in draft.rows if row.samples]
        sources = [source for source, _ in draft.block_copies]
        self._flights.append(_Flight(plan, draft.sequences, sampling, sources, draft.hit_tokens, now))
        self._missed_tokens += draft.num_prefill_tokens
        self._hit_tokens += draft.hit_tokens
        return plan

    def _accept(self, sequence: SequenceState, token: int) -> SequenceEvent:
        request, tokens = sequence.request, sequence.tokens
        index = len(tokens) - request.prompt_length
        tokens.append(token)
        sequence.num_unknown -= 1
        length = len(tokens)
        if length >= sequence.next_registered <= sequence.num_computed:
            self._residents.register(sequence)
        end = None
        if token in request.stop_token_ids and index >= request.min_tokens:
            end = EndReason.STOP
        elif length >= request.max_length:
            end = EndReason.LENGTH
        cached = 0 if request.reported else request.report()
        if end is not None:
            self._end(sequence)
        return SequenceEvent(request.key, sequence.choice, index, (token,), end, cached)

    def _is_live(self, entry: tuple[float, int, RequestKey]) -> bool:
        state = self._requests.get(entry[2])
        return state is not None and state.number == entry[1]

    def _end(self, sequence: SequenceState) -> None:
        self._residents.end(sequence)
        if not sequence.request.num_live:
            del self._requests[sequence.request.key]
            self._shares.leave(sequence.request.account)

    def _give_credit(self, state: RequestState, tokens: int) -> None:
        if state.credit is None:
            return
        state.credit += tokens
        for sequence in state.sequences:
            self._queue_again(sequence)

    def _queue_again(self, sequence: SequenceState) -> None:
        """What it waited for outside the queue has come."""
        if sequence.phase is Phase.QUEUED and not sequence.ticket:
            self._residents.wait(sequence)

    def _charge(self, flight: _Flight, seconds: float) -> None:
        """Share a step's time out: what its prompt tokens take by tokens, the rest, which is one pass, by rows."""
        plan = flight.plan
        prefill = min(seconds, plan.num_prefill_tokens * self._rate.seconds_per_token)
        per_token = prefill / max(1, plan.num_prefill_tokens)
        per_row = (seconds - prefill) / max(1, len(plan.rows))
        used: dict[Account, float] = defaultdict(float)
        for row, sequence in zip(plan.rows, flight.sequences, strict=True):
            tokens = row.num_tokens if row.token_ids is not None else 0
            used[sequence.request.account] += per_row + tokens * per_token
        self._shares.charge(used)

    def _measure(self, flight: _Flight, now: float) -> None:
        plan = flight.plan
        seconds = max(0.0, now - max(flight.planned_at, self._completed_at))
        self._completed_at = now
        self._rate.learn(seconds, plan.num_prefill_tokens, plan.num_decode_tokens)
        self._share.add(now, seconds if plan.num_prefill_tokens else 0.0)
        self._charge(flight, seconds)
        if self._step_observer is not None:
            self._step_observer(
                StepStatistics(
                    plan.step,
                    plan.lane,
                    plan.num_prefill_tokens,
                    plan.num_decode_tokens,
                    plan.context_tokens,
                    flight.hit_tokens,
                    seconds,
                )
            )
