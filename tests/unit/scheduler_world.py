"""A replica for scheduler tests: the real scheduler, and workers whose 'model' shows every mix-up.

KV cells hold (position, token, step, slot). A row reads all cells of its context through its own block table, as
attention does, and draws its token from them and from the identity that its slot was opened with. So a stale slot, a
block given to two, a copy too early or a chunk out of order changes tokens or trips a check.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from cluster.replica.plan import ChoiceStart, EndReason, Request, SchedulerConfig, SequenceEvent, StepPlan
from cluster.replica.scheduler import Scheduler

VOCABULARY = 50


def draw(key, choice: int, context) -> int:
    return hash((key, choice, tuple(context))) % VOCABULARY


def config(**changes) -> SchedulerConfig:
    defaults = {
        "max_batch_tokens": 16,
        "max_sequences": 4,
        "block_size": 4,
        "num_blocks": 32,
        "context_length": 64,
        "look_ahead_seconds": math.inf,
    }
    return SchedulerConfig(**{**defaults, **changes})


def request(key, prompt, *, n: int = 1, emitted=None, max_tokens: int = 8, **fields) -> Request:
    choices = tuple(ChoiceStart(i, tuple(emitted[i]) if emitted else ()) for i in range(n))
    return Request(key=key, prompt=tuple(prompt), choices=choices, max_tokens=max_tokens, **fields)


def alone(request: Request, start: ChoiceStart) -> tuple[list[int], EndReason]:
    """What the choice generates with a machine for itself: the tokens after `emitted`, and why it ends."""
    context = [*request.prompt, *start.emitted]
    while True:
        index = len(context) - len(request.prompt)
        token = draw(request.key, start.index, context)
        context.append(token)
        generated = context[len(request.prompt) + len(start.emitted) :]
        if token in request.stop_token_ids and index >= request.min_tokens:
            return generated, EndReason.STOP
        if index + 1 == request.max_tokens:
            return generated, EndReason.LENGTH


@dataclass
class Slot:
    key: object
    choice: int
    table: list[int] = field(default_factory=list)
    computed: int = 0
    sampled: int | None = None


class Workers:
    """Runs plans in order, knowing nothing but the plans."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.slots: dict[int, Slot] = {}
        self.cells: dict[int, tuple[int, int, int, int]] = {}
        self.ran = 0

    def run(self, plan: StepPlan) -> list[tuple[int, int]]:
        assert plan.step == self.ran + 1
        self.ran += 1
        for slot in plan.closed_slots:
            del self.slots[slot]
        for opened in plan.opened:
            assert opened.slot not in self.slots
            assert 0 <= opened.slot < self.config.max_sequences
            self.slots[opened.slot] = Slot(opened.key, opened.choice, sampled=None)
        size = self.config.block_size
        for source, destination in plan.block_copies:
            for offset in range(size):
                if (cell := self.cells.get(source * size + offset)) is not None:
                    self.cells[destination * size + offset] = cell
        new_slots = {opened.slot for opened in plan.opened}
        for row in plan.rows:
            slot = self.slots[row.slot]
            assert (slot.key, slot.choice) == (row.key, row.choice)
            if row.slot in new_slots:
                slot.computed = row.start_position
            slot.table.extend(row.new_block_ids)
            assert row.start_position == slot.computed
            tokens = row.token_ids if row.token_ids is not None else (slot.sampled,)
            assert len(tokens) == row.num_tokens
            for position, token in enumerate(tokens, row.start_position):
                block = slot.table[position // size]
                holders = [other for other in self.slots.values() if block in other.table]
                assert holders == [slot], "written block belongs to one slot alone"
                self.cells[block * size + position % size] = (position, token, plan.step, row.slot)
            slot.computed += row.num_tokens
        sampled = []
        for row in plan.rows:
            if row.samples:
                slot = self.slots[row.slot]
                context = []
                for position in range(slot.computed):
                    cell = self.cells[slot.table[position // size] * size + position % size]
                    assert cell[0] == position, "a cell holds another position's keys and values"
                    assert cell[2] < plan.step or cell[3] == row.slot, "no row reads what another writes in its step"
                    context.append(cell[1])
                slot.sampled = draw(slot.key, slot.choice, context)
                sampled.append((row.slot, slot.sampled))
        return sampled


class World:
    """Scheduler and workers on a clock that tests move; checks the invariants after every step."""

    def __init__(self, config: SchedulerConfig, **options) -> None:
        self.config = config
        self.scheduler = Scheduler(config, **options)
        self.workers = Workers(config)
        self.in_flight: deque[StepPlan] = deque()
        self.plans: list[StepPlan] = []
        self.now = 0.0
        self.requests: dict[object, Request] = {}
        self.tokens: dict[tuple[object, int], list[int]] = {}
        self.ends: dict[tuple[object, int], EndReason] = {}
        self.cached: Counter[object] = Counter()
        self.cancelled: set[object] = set()

    def submit(self, request: Request) -> None:
        self.scheduler.submit(request, self.now)
        self.requests[request.key] = request
        for start in request.choices:
            self.tokens[request.key, start.index] = []

    def cancel(self, key) -> None:
        self.cancelled.add(key)
        self.scheduler.cancel(key)
        self.check()

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan(self.now)
        if plan is not None:
            self._check_plan(plan)
            self.in_flight.append(plan)
            self.plans.append(plan)
        self.check()
        return plan

    def complete(self) -> list[SequenceEvent]:
        plan = self.in_flight.popleft()
        events = self.scheduler.complete(plan.step, self.workers.run(plan), self.now)
        self._take(events)
        self.check()
        return events

    def expire(self) -> list[SequenceEvent]:
        events = self.scheduler.expire(self.now)
        self._take(events)
        self.check()
        return events

    def run(self, seconds_per_step: float = 0.0, limit: int = 5_000) -> None:
        """Keep as many steps in flight as allowed until nothing more can run."""
        for _ in range(limit):
            while self.plan() is not None:
                pass
            if not self.in_flight:
                return
            self.now += seconds_per_step
            self.complete()
        raise AssertionError("does not come to an end")

    def _take(self, events: list[SequenceEvent]) -> None:
        for event in events:
            name = event.key, event.choice
            assert event.key not in self.cancelled
            assert name not in self.ends, "ends once, and nothing comes after"
            start = self.start_of(*name)
            assert event.first_index == len(start.emitted) + len(self.tokens[name])
            self.tokens[name].extend(event.token_ids)
            self.cached[event.key] += event.cached_prompt_tokens
            if event.end is not None:
                self.ends[name] = event.end

    def start_of(self, key, choice: int) -> ChoiceStart:
        return next(start for start in self.requests[key].choices if start.index == choice)

    def check_answers(self) -> None:
        """Every choice said what it says alone, as far as it got; completed ones all of it."""
        for (key, choice), tokens in self.tokens.items():
            expected, end = alone(self.requests[key], self.start_of(key, choice))
            reached = self.ends.get((key, choice))
            if reached in (EndReason.STOP, EndReason.LENGTH):
                assert (tokens, reached) == (expected, end)
            else:
                assert tokens == expected[: len(tokens)]
                assert key in self.cancelled or reached is EndReason.DEADLINE

    def check_idle(self) -> None:
        """Nothing is held by anyone."""
        load = self.scheduler.load()
        assert not self.scheduler.has_work
        assert (load.used_blocks, load.running, load.waiting, load.pending_prefill_tokens) == (0, 0, 0, 0)
        assert load.context_tokens == 0
        assert len(self.scheduler._residents._free_slots) == self.config.max_sequences

    def _check_plan(self, plan: StepPlan) -> None:
        assert len(self.in_flight) <= self.config.num_lanes
        assert 0 < sum(row.num_tokens for row in plan.rows) <= self.config.max_batch_tokens
        assert plan.num_prefill_tokens + plan.num_decode_tokens == sum(row.num_tokens for row in plan.rows)
        slots = [row.slot for row in plan.rows]
        assert len(set(slots)) == len(slots)
        assert {opened.slot for opened in plan.opened} <= set(slots)
        named = {row.slot for flight in self.in_flight for row in flight.rows}
        assert not named & set(plan.closed_slots), "a slot is closed while a step in flight names it"
        for row in plan.rows:
            assert self.requests[row.key].deadline > self.now
            assert row.key not in self.cancelled
            assert (row.key, row.choice) not in self.ends

    def check(self) -> None:
        scheduler = self.scheduler
        blocks, residents = scheduler.blocks, scheduler._residents
        assert blocks.num_free + blocks.num_cached + blocks.num_used == blocks.num_blocks
        holders: Counter[int] = Counter()
        for sequence in [*residents, *residents._leaving]:
            holders.update(sequence.blocks)
            assert len(set(sequence.blocks)) == len(sequence.blocks)
        for flight in scheduler._flights:
            holders.update(flight.copy_sources)
        assert [holders[block] for block in range(blocks.num_blocks)] == blocks._holders
        slots = [sequence.slot for sequence in [*residents, *residents._leaving]]
        assert sorted([*slots, *residents._free_slots]) == list(range(self.config.max_sequences))
