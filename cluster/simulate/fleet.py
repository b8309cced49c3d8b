"""A fleet on a virtual clock: replays a trace through routers, a policy and replicas. Knows time and distance, decides
nothing itself.

Arrivals are open-loop: nobody waits for an answer before asking again. A request goes to its home region's router, the
policy chooses, half a round trip later the replica has it, and tokens take half a round trip back.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from cluster.replica.plan import EndReason, SequenceEvent
from cluster.simulate.goodput import Outcome, Summary, summarise
from cluster.simulate.policies.base import HOLD, REJECT, Ask, FleetFacts, PolicyKind, Setting
from cluster.simulate.regions import round_trips
from cluster.simulate.replica import Flight, SimulatedReplica
from cluster.simulate.scenario import Scenario
from cluster.simulate.step_time import scaled
from cluster.simulate.traces import home_regions
from cluster.simulate.views import ReplicaFacts, RouterView
from cluster.simulate.workload import Workload

DRAIN_SECONDS = 120.0
"""After the last arrival; what is not done by then has failed."""
FIRST_EXPECTED_TOKENS = 256.0
"""Length of an answer that routers expect before they have seen any, as if seen this often:"""
FIRST_EXPECTED_WEIGHT = 20


class Fleet:
    """One run."""

    def __init__(
        self, scenario: Scenario, workload: Workload, kind: PolicyKind, setting: Setting, load: float, seed: int
    ) -> None:
        """
        Args:
            workload: made for this scenario's block size.
            load: the trace is played so many times as fast as recorded.
            seed: decides homes of sessions, arrivals within what the trace resolves, phases of reports, and ties.
        """
        self.scenario = scenario
        self._rng = random.Random(seed)  # noqa: S311 - repeatable, guards nothing
        homes = home_regions(workload.trace, scenario.demand, self._rng)
        count = len(scenario.regions) * scenario.replicas_per_region
        self.region_of = [index // scenario.replicas_per_region for index in range(count)]
        self.replicas = self._make_replicas()
        self._routers = self._make_routers()
        self._held: list[deque[Flight]] = [deque() for _ in scenario.regions]
        self._may_hold = kind.may_hold
        self._policy = kind.make(FleetFacts(count, scenario.block_size, scenario.max_batch_tokens, self._rng), setting)
        self._flights = self._make_flights(workload, homes, load)
        self._num_open = len(self._flights)
        self._num_failed = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._dead: set[int] = set()
        self._router_of = list(range(len(scenario.regions)))
        self._step_version = [0] * count
        self._output_tokens = FIRST_EXPECTED_TOKENS * FIRST_EXPECTED_WEIGHT
        self._num_answers = FIRST_EXPECTED_WEIGHT

    @property
    def outcomes(self) -> list[Outcome]:
        return [flight.outcome for flight in self._flights]

    def run(self, give_up_below: float = 0.0) -> Summary:
        """Play the trace.

        Args:
            give_up_below: stop as soon as goodput is sure to stay below this share; then what had not ended by then
                counts as failed.
        """
        last_arrival = self._flights[-1].outcome.arrival
        may_fail = (1 - give_up_below) * len(self._flights)
        self._schedule_reports()
        if self.scenario.lost_region is not None:
            self._at(last_arrival / 2, self._lose_region, self.scenario.lost_region)
        arrivals = iter(self._flights)
        flight = next(arrivals, None)
        busy_seconds = 0.0
        while self._num_open and self._num_failed <= may_fail and self._now <= last_arrival + DRAIN_SECONDS:
            if flight is not None and flight.outcome.arrival <= self._events[0][0]:
                self._now = flight.outcome.arrival
                self._dispatch(flight)
                flight = next(arrivals, None)
            else:
                self._now, _, action, arguments = heapq.heappop(self._events)
                action(*arguments)
            if self._now <= last_arrival:
                busy_seconds = sum(replica.busy_seconds for replica in self.replicas)
        end = max(1e-9, min(self._now, last_arrival))
        return summarise(self.outcomes, self.scenario.targets, self.region_of, busy_seconds / len(self.replicas) / end)

    # Making.

    def _make_replicas(self) -> list[SimulatedReplica]:
        scenario = self.scenario
        count = len(self.region_of)
        slow = {index * count // scenario.slow_replicas for index in range(scenario.slow_replicas)}
        return [
            SimulatedReplica(
                index,
                region,
                scenario.scheduler_config(),
                scaled(scenario.costs, scenario.slow_factor) if index in slow else scenario.costs,
                scenario.lump,
            )
            for index, region in enumerate(self.region_of)
        ]

    def _make_routers(self) -> list[RouterView]:
        scenario = self.scenario
        distance = round_trips(scenario.regions)
        believed = [
            scaled(scenario.costs, scenario.believed_scale if index % 2 else 1 / scenario.believed_scale)
            for index in range(len(self.region_of))
        ]
        idle = self.replicas[0].scheduler.load()
        return [
            RouterView(
                [ReplicaFacts(there, distance[here][there], believed[i]) for i, there in enumerate(self.region_of)],
                scenario.block_size,
                idle,
            )
            for here in range(len(scenario.regions))
        ]

    def _make_flights(self, workload: Workload, homes: dict[int, int], load: float) -> list[Flight]:
        trace = workload.trace
        flights = []
        rows = zip(trace.requests, workload.keys, trace.arrivals(self._rng), strict=True)
        for number, (request, keys, recorded) in enumerate(rows):
            arrival = recorded / load
            flights.append(
                Flight(
                    number,
                    request,
                    keys,
                    Outcome(request.num_prompt_tokens, arrival, homes[request.session]),
                    first_token_by=arrival + self.scenario.targets.ttft(request.num_prompt_tokens),
                    deadline=arrival + self.scenario.deadline_seconds,
                )
            )
        return flights

    def _schedule_reports(self) -> None:
        for index in range(len(self.replicas)):
            self._at(self._rng.random() * self.scenario.report_seconds, self._report, index)

    def _at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (time, next(self._order), action, arguments))

    # Routers.

    def _dispatch(self, flight: Flight) -> None:
        """The flight is at its home region's router, or that region's stand-in."""
        region = self._router_of[flight.outcome.home]
        if self._held[region] or not self._try_dispatch(flight, region):
            self._held[region].append(flight)

    def _try_dispatch(self, flight: Flight, region: int) -> bool:
        """False if the policy wants to hold it."""
        router = self._routers[region]
        num_tokens = flight.request.num_prompt_tokens + flight.num_emitted
        views = router.look(flight.keys, num_tokens, self._now)
        ask = Ask(
            num_tokens,
            flight.request.session,
            region,
            self._now,
            self._output_tokens / self._num_answers,
            self.scenario.targets.ttft(num_tokens),
        )
        chosen = self._policy.choose(ask, views)
        if chosen == HOLD:
            return False
        if chosen == REJECT:
            self._close(flight, failed=True)
            return True
        view = next(view for view in views if view.index == chosen)
        arrives_at = router.dispatched(view, self._now, flight.keys, num_tokens)
        flight.outcome.served_by = chosen
        self._at(arrives_at, self._deliver, flight, chosen, view.round_trip)
        return True

    def _retry_held(self) -> None:
        for region, held in enumerate(self._held):
            while held and self._try_dispatch(held[0], region):
                held.popleft()

    def _close(self, flight: Flight, failed: bool) -> None:
        self._num_open -= 1
        if failed or not flight.outcome.is_good(self.scenario.targets):
            self._num_failed += 1

    # Replicas.

    def _deliver(self, flight: Flight, index: int, round_trip: float) -> None:
        if index in self._dead:
            # Nobody answers: the router notices as it notices every death.
            flight.outcome.moves += 1
            self._at(self._now + self.scenario.notice_seconds, self._dispatch, flight)
            return
        flight.round_trip = round_trip
        replica = self.replicas[index]
        replica.submit(flight, self._now)
        replica.begin_step(self._now)
        self._expect_step(replica)

    def _expect_step(self, replica: SimulatedReplica) -> None:
        self._step_version[replica.index] += 1
        if replica.is_busy:
            self._at(replica.step_ends, self._end_step, replica, self._step_version[replica.index])

    def _end_step(self, replica: SimulatedReplica, version: int) -> None:
        if version != self._step_version[replica.index]:
            return
        for flight, event in replica.end_step(self._now):
            self._take_news(flight, event)
        replica.begin_step(self._now)
        self._expect_step(replica)

    def _take_news(self, flight: Flight, event: SequenceEvent) -> None:
        outcome = flight.outcome
        heard_at = self._now + flight.round_trip / 2
        if event.token_ids and outcome.first_token is None:
            outcome.first_token = heard_at
        outcome.cached_tokens += event.cached_prompt_tokens
        if event.end is None:
            return
        outcome.num_tokens = flight.num_emitted
        if event.end is EndReason.STOP:
            outcome.last_token = heard_at
            self._output_tokens += flight.num_emitted
            self._num_answers += 1
        self._close(flight, failed=event.end is not EndReason.STOP)

    def _report(self, index: int) -> None:
        if index in self._dead:
            return
        report = self.replicas[index].report(self._now)
        for router in self._routers:
            router.hear(index, report)
        self._at(self._now + self.scenario.report_seconds, self._report, index)
        if self._may_hold:
            self._retry_held()

    def _lose_region(self, lost: int) -> None:
        """All at once: the router's clients go to the nearest region left, what ran there goes on elsewhere."""
        self._dead.update(index for index, region in enumerate(self.region_of) if region == lost)
        left = [region for region in range(len(self._routers)) if region != lost]
        distance = round_trips(self.scenario.regions)[lost]
        self._router_of = [
            min(left, key=distance.__getitem__) if region == lost else region for region in self._router_of
        ]
        noticed = self._now + self.scenario.notice_seconds
        for index in self._dead:
            self._step_version[index] += 1
            for flight in self.replicas[index].abandon(self._now):
                flight.outcome.moves += 1
                self._at(noticed, self._dispatch, flight)
        for flight in self._held[lost]:
            self._at(noticed, self._dispatch, flight)
        self._held[lost].clear()
        self._at(noticed, self._notice_loss)

    def _notice_loss(self) -> None:
        for router in self._routers:
            for index in self._dead:
                router.lose(index)
