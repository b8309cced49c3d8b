"""One epoch of one replica: requests in, steps out to the ranks, tokens back to the routers they belong to.

1. A router's `submit` is checked and queued; the loop wakes.
2. `plan` → `send_step`: up to a step a stage and one more are in flight.
3. `step_done` → `complete` → deltas, at most one report a router and step.
4. A lost rank ends the epoch: every live request ends with ERROR and can go on at another replica.

Knows requests, plans and connections to routers; knows no gRPC, no sockets, no tensors. One asyncio loop, no threads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
from collections import deque
from collections.abc import Collection
from typing import Protocol

import numpy as np

from argosy.internal.v1 import control_pb2, replica_pb2, step_pb2
from cluster.clock import Clock
from cluster.errors import Reason, ServiceError
from cluster.ids import Epoch
from cluster.logs import about
from cluster.protocol import REPLICA_PROTOCOL_VERSION
from cluster.replica.connection import Connection
from cluster.replica.constraints import Constraints
from cluster.replica.live import Flight, Live, keep_logprobs, rivals, sampled_rows, share_out, suspects
from cluster.replica.observer import Observer, Unobserved
from cluster.replica.plan import Refused, Request, RequestKey, SequenceEvent, StepPlan
from cluster.replica.prefix_log import PrefixLog
from cluster.replica.scheduler import Scheduler
from cluster.replica.step_costs import StepCostFit
from cluster.replica.step_message import step_input
from cluster.replica.step_times import StepTimes
from cluster.replica.traces import RequestTraces
from cluster.replica.trials import Trials
from cluster.replica.validate import Limits, read_spec
from cluster.telemetry.tracing import NO_SPAN, Span

logger = logging.getLogger(__name__)


class Ranks(Protocol):
    """What the engine needs of the executor."""

    def send_step(self, step: int, message: bytes, predicted_seconds: float) -> None: ...
    def close(self) -> None: ...


class Engine:
    """The loop of one epoch."""

    def __init__(
        self,
        epoch: Epoch,
        num_stages: int,
        limits: Limits,
        scheduler: Scheduler,
        constraints: Constraints,
        prefixes: PrefixLog,
        ranks: Ranks,
        clock: Clock,
        num_ranks: int = 1,
        observer: Observer | None = None,
        traces: RequestTraces | None = None,
    ) -> None:
        self._traces = traces or RequestTraces()
        self._num_ranks = num_ranks
        self._observer = observer or Unobserved()
        self.state: control_pb2.ReplicaState = control_pb2.REPLICA_STATE_LOADING
        self.reason = ""
        self.step = 0
        self.delivered_tokens = 0
        """Given to routers, since the epoch began."""
        self.prefixes = prefixes
        """Hears of the scheduler's blocks."""
        self._epoch = epoch
        self._limits = limits
        self._scheduler = scheduler
        self._constraints = constraints
        self._ranks = ranks
        self._clock = clock
        self._max_in_flight = num_stages + 1
        self._connections: dict[int, Connection] = {}
        self._connection_ids = itertools.count(1)
        self._live: dict[RequestKey, Live] = {}
        self._trials = Trials()
        self._held: dict[RequestKey, Request] = {}
        """Requests that may not begin yet."""
        self._opening: set[asyncio.Task[None]] = set()
        self._flights: deque[Flight] = deque()
        self._times = StepTimes()
        self.costs = StepCostFit()
        """How long steps have taken."""
        self._awake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._load: replica_pb2.Load | None = None

    # Routers

    def connect(self, hello: replica_pb2.Hello) -> Connection:
        """Admit a router.

        Raises:
            ServiceError: it expects another epoch or protocol, or this replica takes no requests.
        """
        if hello.protocol_version != REPLICA_PROTOCOL_VERSION:
            raise ServiceError(Reason.PROTOCOL_VERSION, f"this replica speaks version {REPLICA_PROTOCOL_VERSION}")
        if hello.expected_epoch not in (0, self._epoch):
            raise ServiceError(Reason.STALE_EPOCH)
        if self.state != control_pb2.REPLICA_STATE_READY:
            raise ServiceError(Reason.NO_REPLICA)
        blocks = self.prefixes.listen() if hello.wants_block_events else None
        connection = Connection(next(self._connection_ids), hello.router_id, blocks)
        self._connections[connection.connection_id] = connection
        return connection

    def disconnect(self, connection: Connection) -> None:
        """The router is gone, and with it every request that it had here."""
        self._connections.pop(connection.connection_id, None)
        for key, live in list(self._live.items()):
            if live.connection is connection:
                self._drop(key)

    def submit(self, connection: Connection, message: replica_pb2.Submit) -> None:
        """Queue a request. Whatever is wrong with it ends that request alone."""
        spec, key = message.spec, (connection.connection_id, message.stream_id)
        if key in self._live:
            raise ServiceError(Reason.INTERNAL, f"stream {message.stream_id} is in use")
        live = Live(connection, message.stream_id, spec, {choice.index for choice in spec.choices} or {0})
        live.queued_at = now = self._clock.monotonic()
        live.span = self._traces.begin(spec)
        live.about = about(request=spec.request_id)
        logger.info("queued, prompt %d", len(spec.prompt_token_ids), extra=live.about)
        try:
            if self.state != control_pb2.REPLICA_STATE_READY:
                live.end(replica_pb2.END_REASON_ERROR, "the replica takes no new requests")
                return
            if not self._supersede(spec):
                live.end(replica_pb2.END_REASON_SUPERSEDED, "")
                return
            request = read_spec(spec, key, self._limits, now)
        except Refused as refusal:
            live.end(replica_pb2.END_REASON_REFUSED, str(refusal))
            return
        except Exception as error:  # no request may end the engine
            logger.exception("request %s could not be queued", spec.request_id)
            live.end(replica_pb2.END_REASON_ERROR, type(error).__name__)
            return
        self._live[key] = live
        self._held[key] = request
        self._idle.clear()
        self._begin(self._trials.enter(key, is_suspect=spec.suspect))

    def _begin(self, keys: Collection[RequestKey]) -> None:
        """Queue requests whose turn to begin has come."""
        for key in keys:
            live, request = self._live[key], self._held.pop(key)
            if request.needs_permits:
                self._open_later(live, request)
                continue
            try:
                self._scheduler.submit(request, self._clock.monotonic())
            except Refused as refusal:
                live.end(replica_pb2.END_REASON_REFUSED, str(refusal))
                self._forget(key)
            except Exception as error:  # no request may end the engine
                logger.exception("request %s could not be queued", live.spec.request_id)
                live.end(replica_pb2.END_REASON_ERROR, type(error).__name__)
                self._forget(key)
        self._awake.set()

    def _supersede(self, spec: replica_pb2.GenerationSpec) -> bool:
        """End what is here of the request's earlier generations; False if a later one is here."""
        earlier, is_late = rivals(self._live, spec)
        for key in earlier:
            self._live[key].end(replica_pb2.END_REASON_SUPERSEDED, "")
            self._drop(key)
        return not is_late

    def _open_later(self, live: Live, request: Request) -> None:
        """Queue a request with a grammar once that is compiled; what runs goes on meanwhile."""
        task = asyncio.get_running_loop().create_task(self._open(live, request))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, live: Live, request: Request) -> None:
        end = detail = None
        try:
            places = await self._constraints.open(live.spec)
            if self._live.get(request.key) is not live:
                return  # given up meanwhile
            self._scheduler.submit(request, self._clock.monotonic())
            self._constraints.admit(request.key, places)
        except Refused as refusal:
            end, detail = replica_pb2.END_REASON_REFUSED, str(refusal)
        except Exception as error:  # no request may end the engine
            logger.exception("request %s could not be constrained", live.spec.request_id)
            end, detail = replica_pb2.END_REASON_ERROR, type(error).__name__
        if end is not None and detail is not None and self._live.get(request.key) is live:
            live.end(end, detail)
            self._forget(request.key)
        self._awake.set()

    def cancel(self, connection: Connection, stream_id: int) -> None:
        """Give a request up; one that is over already is ignored."""
        connection.forget(stream_id)
        self._drop((connection.connection_id, stream_id))

    def credit(self, connection: Connection, stream_id: int, tokens: int) -> None:
        """The router can take more tokens."""
        self._scheduler.add_credit((connection.connection_id, stream_id), tokens)
        self._awake.set()

    def load(self) -> replica_pb2.Load:
        """The replica's load; computed at most once a step."""
        if self._load is None:
            self._load = replica_pb2.Load(**dataclasses.asdict(self._scheduler.load()))
        return self._load

    @property
    def predicted_step_seconds(self) -> float:
        """The longest predicted step in flight; 0 if none is."""
        return max((flight.predicted_seconds for flight in self._flights), default=0.0)

    # Ranks

    def ranks_ready(self) -> None:
        if self.state == control_pb2.REPLICA_STATE_LOADING:
            self.state = control_pb2.REPLICA_STATE_READY
            logger.info("ready")

    def step_done(self, output: step_pb2.StepOutput) -> None:
        """Deliver a step's tokens and plan the next one at once: the ranks may be waiting for it."""
        try:
            self._complete(output)
            self._advance()
        except Exception as error:  # state and ranks no longer agree
            logger.exception("step %d", output.step)
            self.fail(f"step {output.step}: {type(error).__name__}: {error}")

    def ranks_lost(self, reason: str) -> None:
        self.fail(reason, suspects(self._live, self._flights))

    def fail(self, reason: str, suspects: Collection[RequestKey] = ()) -> None:
        """End the epoch: every live request can go on elsewhere, `suspects` with care."""
        if self.state == control_pb2.REPLICA_STATE_FAILED:
            return
        self.state, self.reason = control_pb2.REPLICA_STATE_FAILED, reason
        self._end_all_requests("the replica failed", suspects)
        self._flights.clear()
        for connection in self._connections.values():
            connection.end(ServiceError(Reason.REPLICA_LOST))
        self._ranks.close()
        self._awake.set()

    # The loop

    async def run(self) -> None:
        """Wake for new requests, cancels, credits, masks and deadlines until the epoch ends."""
        while self.state != control_pb2.REPLICA_STATE_FAILED:
            deadline = self._scheduler.next_deadline
            timer = None
            if deadline < math.inf:
                delay = max(0.0, deadline - self._clock.monotonic())
                timer = asyncio.get_running_loop().call_later(delay, self._awake.set)
            await self._awake.wait()
            self._awake.clear()
            if timer:
                timer.cancel()
            try:
                self._advance()
            except Exception as error:
                logger.exception("planning failed")
                self.fail(f"planning failed: {type(error).__name__}: {error}")

    async def drain(self, grace_seconds: float) -> None:
        """Take nothing new; return when nothing is left, after `grace_seconds` at the latest. What is left by then
        can go on at another replica."""
        if self.state in (control_pb2.REPLICA_STATE_READY, control_pb2.REPLICA_STATE_LOADING):
            self.state = control_pb2.REPLICA_STATE_DRAINING
            try:
                async with asyncio.timeout(grace_seconds):
                    await self._idle.wait()
            except TimeoutError:
                logger.warning("%d requests are left after %.0f s", len(self._live), grace_seconds)
        for key in self._live:
            self._scheduler.cancel(key)
        self._end_all_requests("the replica stops")
        for connection in self._connections.values():
            connection.end(ServiceError(Reason.NO_REPLICA))

    def _advance(self) -> None:
        """End what is due, then plan and send as many steps as may be in flight."""
        if self.state not in (control_pb2.REPLICA_STATE_READY, control_pb2.REPLICA_STATE_DRAINING):
            return
        self._permit()
        now = self._clock.monotonic()
        self._load = None
        for event in self._scheduler.expire(now):
            self._deliver(event)
        while len(self._flights) < self._max_in_flight and (plan := self._scheduler.plan(now)):
            self._send(plan, now)

    def _permit(self) -> None:
        """Let constrained choices go on whose masks are there, and end those whose grammar has become too costly."""
        for (key, choice), can_go_on in self._constraints.settle(self._awake.set):
            if can_go_on:
                self._scheduler.permit(key, choice)
            elif live := self._live.get(key):
                live.end(replica_pb2.END_REASON_REFUSED, "grammar: it is too costly to follow")
                self._drop(key)

    def _send(self, plan: StepPlan, now: float) -> None:
        self._observer.step_sent(now)
        for slot in plan.opened:
            live = self._live[slot.key]
            if live.queued_at is not None:
                self._observer.request_started(now - live.queued_at)
                live.queued_at = None
                live.span.event("first step")
        specs = {slot.key: self._live[slot.key].spec for slot in plan.opened}
        message = step_input(plan, self._epoch, specs, self._constraints.masks(plan.rows))
        flight = Flight(plan, self._times.predict(plan.num_prefill_tokens), sampled_rows(self._live, plan))
        self._flights.append(flight)
        self._ranks.send_step(plan.step, message, self.predicted_step_seconds)

    def _complete(self, output: step_pb2.StepOutput) -> None:
        if not self._flights or self._flights[0].plan.step != output.step:
            raise ValueError("answered out of turn")
        flight = self._flights.popleft()
        self.step = output.step
        self._times.learn(flight.plan.num_prefill_tokens, output.seconds)
        self.costs.learn(flight.plan, output.seconds)
        now = self._clock.monotonic()
        self._observer.step_done(now, flight.plan, output.seconds, in_flight=len(self._flights))
        self._traces.step(flight.plan, output.seconds, self._span_of)
        # Stages are balanced, so each is taken for the last.
        share_out(self._live, flight.plan, output.compute_seconds * self._num_ranks)
        keep_logprobs(self._live, flight.reporting, output.logprobs)
        slots = np.frombuffer(output.slots, "<i4").tolist()
        tokens = np.frombuffer(output.token_ids, "<i4").tolist()
        sampled = list(zip(slots, tokens, strict=True))
        self._load = None
        for event in self._scheduler.complete(output.step, sampled, now):
            self._deliver(event)

    def _span_of(self, key: RequestKey) -> Span:
        live = self._live.get(key)
        return live.span if live else NO_SPAN

    # Deltas

    def _deliver(self, event: SequenceEvent) -> None:
        live = self._live.get(event.key)
        if live is None:
            return
        is_first = not live.has_begun
        live.tell(event)
        if is_first:
            self._begin(self._trials.begun(event.key))
        self.delivered_tokens += len(event.token_ids)
        if not event.end:
            self._constraints.advance(event.key, event.choice, event.token_ids[-1])
        else:
            self._constraints.forget(event.key, event.choice)
            if not live.open_choices:
                self._forget(event.key)

    def _end_all_requests(self, detail: str, suspects: Collection[RequestKey] = ()) -> None:
        for key, live in self._live.items():
            live.end(replica_pb2.END_REASON_ERROR, detail, suspect=key in suspects)
        self._live.clear()
        self._held.clear()
        self._trials = Trials()
        self._idle.set()

    def _drop(self, key: RequestKey) -> None:
        """Forget a request that did not run to its end."""
        self._scheduler.cancel(key)
        self._forget(key)
        self._awake.set()

    def _forget(self, key: RequestKey) -> None:
        live = self._live.pop(key, None)
        if live:
            live.span.end()
            logger.info("over", extra=live.about)
        for choice in live.open_choices if live else ():
            self._constraints.forget(key, choice)
        self._held.pop(key, None)
        if not self._live:
            self._idle.set()
        self._begin(self._trials.begun(key))
