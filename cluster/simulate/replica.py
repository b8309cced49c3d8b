"""One replica on a virtual clock: the production scheduler and block manager, and a device that only takes time. Knows
no routers and no policies.

While nothing but decoding goes on, steps are lumped: the scheduler is moved on by many at once, whenever somebody looks
(`cluster.replica.lull`). With `lump` off every step is planned and completed; a test holds both to the same outcome.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cluster.prefix import BlockKey
from cluster.replica.lull import quiet_steps, repeat_step
from cluster.replica.plan import ChoiceStart, Request, SchedulerConfig, SequenceEvent, StepPlan
from cluster.replica.scheduler import Scheduler
from cluster.router.choose import StepCosts
from cluster.simulate.goodput import Outcome
from cluster.simulate.step_time import step_seconds
from cluster.simulate.traces import TraceRequest
from cluster.simulate.views import PrefixEvent, Report

STOP_TOKEN = 0
"""What the simulated device samples at an answer's recorded end: until then neither scheduler nor router knows it."""
FIRST_ANSWER_TOKEN = 1 << 31
"""Answers consist of one token id each, from here on, apart from all trace blocks: answers are never shared."""
MAX_ANSWER_TOKENS = 4096


@dataclass(slots=True)
class Flight:
    """A request on its way through the fleet."""

    number: int
    """Its place in the trace."""
    request: TraceRequest
    keys: tuple[BlockKey, ...]
    """Of the prompt's full blocks."""
    outcome: Outcome
    num_emitted: int = 0
    """Tokens that reached its router or are about to."""
    first_token_by: float = math.inf
    deadline: float = math.inf
    round_trip: float = 0.0
    """Between its router and the replica that serves it, seconds."""

    @property
    def answer_token(self) -> int:
        return FIRST_ANSWER_TOKEN + self.number

    @property
    def num_left(self) -> int:
        return self.request.num_output_tokens - self.num_emitted


@dataclass(slots=True)
class _Device:
    """The step in flight and the like ones before it that are not yet accounted for."""

    plan: StepPlan
    began: float
    seconds: float
    growth: float
    """Seconds by which each repetition is longer than the one before: contexts grow."""
    repetitions: int

    def span(self, count: int) -> float:
        """Seconds of the next `count` steps."""
        return count * self.seconds + self.growth * count * (count - 1) / 2

    def done_by(self, now: float) -> int:
        """How many steps are over by `now`, at most all repetitions."""
        passed = now - self.began
        if self.growth:
            middle = self.seconds - self.growth / 2
            count = int((math.sqrt(middle * middle + 2 * self.growth * max(0.0, passed)) - middle) / self.growth)
        else:
            count = int(passed / self.seconds)
        count = min(count + 1, self.repetitions)
        while count > 0 and self.span(count) > passed:
            count -= 1
        return count


@dataclass(slots=True)
class SimulatedReplica:
    """Takes flights, computes them, reports."""

    index: int
    region: int
    config: SchedulerConfig
    costs: StepCosts
    """The device's own; routers may believe others."""
    lump: bool = True
    flights: dict[int, Flight] = field(default_factory=dict)
    busy_seconds: float = 0.0
    scheduler: Scheduler = field(init=False)
    _device: _Device | None = None
    _prefixes: list[PrefixEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config, block_observer=self)

    def stored(self, key: BlockKey) -> None:
        self._prefixes.append((key, True))

    def evicted(self, key: BlockKey) -> None:
        self._prefixes.append((key, False))

    @property
    def is_busy(self) -> bool:
        return self._device is not None

    @property
    def step_ends(self) -> float:
        """When something happens here next if nobody interferes; infinite if idle."""
        device = self._device
        return device.began + device.span(device.repetitions + 1) if device else math.inf

    def submit(self, flight: Flight, now: float) -> None:
        """A request arrives. It is considered when the step in flight is over."""
        self._catch_up(now)
        if self._device:
            self._device.repetitions = 0
        emitted = (flight.answer_token,) * flight.num_emitted
        self.scheduler.submit(
            Request(
                key=flight.number,
                prompt=flight.request.prompt(),
                choices=(ChoiceStart(0, emitted),),
                max_tokens=MAX_ANSWER_TOKENS,
                stop_token_ids=frozenset((STOP_TOKEN,)),
                deadline=flight.deadline,
                first_token_by=flight.first_token_by,
            ),
            now,
        )
        self.flights[flight.number] = flight

    def begin_step(self, now: float) -> None:
        """Plan the next step if the device is free and there is work."""
        if self._device is not None:
            return
        plan = self.scheduler.plan(now)
        if plan is None:
            return
        seconds = step_seconds(self.costs, plan)
        growth = self.costs.decode_per_context_token * plan.num_decode_tokens
        self._device = _Device(plan, now, seconds, growth, 0)
        if self.lump and not plan.num_prefill_tokens:
            self._device.repetitions = self._quiet_steps()

    def end_step(self, now: float) -> list[tuple[Flight, SequenceEvent]]:
        """The step in flight is over: what came of it."""
        self._catch_up(now)
        device, self._device = self._device, None
        assert device is not None
        self.busy_seconds += device.seconds
        sampled = []
        for row in device.plan.rows:
            if row.samples:
                flight = self.flights.get(row.key)  # type: ignore[call-overload]
                ends = flight is not None and flight.num_left == 1
                sampled.append((row.slot, flight.answer_token if flight and not ends else STOP_TOKEN))
        news = []
        events = self.scheduler.complete(device.plan.step, sampled, now)
        if self.scheduler.next_deadline <= now:
            events += self.scheduler.expire(now)
        for event in events:
            flight = self.flights[event.key]  # type: ignore[index]
            flight.num_emitted += len(event.token_ids)
            if event.end is not None:
                del self.flights[flight.number]
            news.append((flight, event))
        return news

    def report(self, now: float) -> Report:
        """State at this moment, and prefixes won and lost since the report before."""
        self._catch_up(now)
        prefixes, self._prefixes = self._prefixes, []
        return Report(now, self.scheduler.load(), prefixes)

    def abandon(self, now: float) -> list[Flight]:
        """The replica dies: what it had, with the tokens that got out."""
        self._catch_up(now)
        self._device = None
        flights, self.flights = list(self.flights.values()), {}
        return flights

    def _quiet_steps(self) -> int:
        quiet = min(quiet_steps(self.scheduler), min(flight.num_left for flight in self.flights.values()) - 1)
        device = self._device
        assert device is not None
        if quiet > 0 and device.began + device.span(quiet + 1) > self.scheduler.next_deadline:
            device.repetitions = quiet
            return device.done_by(self.scheduler.next_deadline)
        return max(0, quiet)

    def _catch_up(self, now: float) -> None:
        """Account for the repetitions that are over by `now`."""
        device = self._device
        if device is None or not device.repetitions:
            return
        count = device.done_by(now)
        if not count:
            return
        span = device.span(count)
        device.began += span
        device.seconds += device.growth * count
        device.repetitions -= count
        self.busy_seconds += span
        repeat_step(self.scheduler, count, device.began)
        for flight in self.flights.values():
            flight.num_emitted += count
