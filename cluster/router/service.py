"""`InferenceService`: a call becomes a live stream, and its news become the answer. Decides nothing itself.

The way of a request: check, tokenise, specify, reserve; then take news, accept it in the ledger, write it, release the
window; settle whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio

from argosy.internal.v1 import replica_pb2
from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from cluster.clock import Clock
from cluster.config import RouterConfig
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.identity.principal import current_caller
from cluster.ledger.records import Ending, Settlement
from cluster.logs import about
from cluster.router.catalogue import Catalogue, ServedModel
from cluster.router.continuation import LiveStream
from cluster.router.fleet import Fleet
from cluster.router.metering import Ledger
from cluster.router.opening import Call, Opener
from cluster.router.places import Places
from cluster.router.response_format import judge
from cluster.router.resume import Tickets
from cluster.router.validate import check, duration_of, specify
from cluster.telemetry import RouterMetrics
from cluster.telemetry.router import OPERATION, PROVIDER, RequestFigures
from cluster.telemetry.tracing import NoTracer, Tracer, current_span, set_span, traceparent_of

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

DRAIN_RETRY_SECONDS = 1.0
MAX_IDEMPOTENCY_KEY = 128


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Generates text at whichever replica is best."""

    def __init__(
        self,
        catalogue: Catalogue,
        fleet: Fleet,
        ledger: Ledger,
        metrics: RouterMetrics,
        clock: Clock,
        limits: RouterConfig,
        tickets: Tickets,
        region: str = "",
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or NoTracer()
        self._catalogue = catalogue
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._tickets = tickets
        self._region = region
        self._opener = Opener(fleet, ledger, clock, limits, tickets, region)
        self._places = Places(limits.max_streams)
        self._streams: set[LiveStream] = set()
        self._is_draining = False

    async def Generate(self, request: api.GenerateRequest, context: Context) -> None:  # noqa: N802 (gRPC's name)
        """Serve one call."""
        model = self._catalogue.find(request.model)
        reason = "CANCELLED"
        self._begin_span(model, context)
        try:
            with self._slot():
                await self._serve(request, model, context)
            reason = "OK"
        except ServiceError as error:
            reason = error.reason.name
            raise
        finally:
            self._metrics.requests.labels(model.name, reason).inc()
            current_span().end("" if reason == "OK" else reason)

    def _begin_span(self, model: ServedModel, context: Context) -> None:
        attributes = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model.name,
            "argosy.tenant": current_caller().tenant,
        }
        parent = traceparent_of(context.invocation_metadata())
        set_span(self._tracer.start(f"{OPERATION} {model.name}", "server", parent, attributes))

    def drain(self) -> None:
        """Refuse new requests; those that run go on."""
        self._is_draining = True

    def cut(self) -> None:
        """End what still runs, with a status that tells the client to go elsewhere."""
        for stream in self._streams:
            stream.fail(ServiceError(Reason.SHUTTING_DOWN, retry_after=DRAIN_RETRY_SECONDS))

    @property
    def num_streams(self) -> int:
        return self._places.num_taken

    @property
    def reserved_tokens(self) -> int:
        """Completion tokens that requests in flight have reserved."""
        return sum(stream.reserved_tokens for stream in self._streams)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Count one request in."""
        if self._is_draining:
            raise ServiceError(Reason.SHUTTING_DOWN, retry_after=DRAIN_RETRY_SECONDS)
        tenant = current_caller().tenant
        self._places.take(tenant)
        self._metrics.live_streams.set(self.num_streams)
        try:
            yield
        finally:
            self._places.leave(tenant)
            self._metrics.live_streams.set(self.num_streams)

    async def _serve(self, request: api.GenerateRequest, model: ServedModel, context: Context) -> None:
        arrived = self._clock.monotonic()
        current_caller().check_use(model.name, self._region)
        _check_idempotency_key(request.idempotency_key)
        check(request, model.limits)
        await judge(request, model.grammars)
        caller = current_caller()
        origin = self._tickets.origin(request, caller.tenant, self._clock.wall())
        spec = specify(
            request,
            await model.tokenise(request),
            model.limits,
            request_id=origin.request_id,
            seed=origin.seed,
            cache_domain=caller.cache_domain,
        )
        spec.priority = max(spec.priority, caller.policy.priority)
        call = await self._opener.open(request, spec, origin, model, arrived)
        self._streams.add(call.stream)
        try:
            await self._relay(call, spec, context)
            call.ending = Ending.COMPLETE
        except ServiceError as error:
            call.ending = Ending.EXPIRED if error.reason is Reason.DEADLINE else Ending.FAILED
            raise
        finally:
            if call.ending is Ending.CANCELLED and not rpc.time_left():
                call.ending = Ending.EXPIRED
            self._streams.discard(call.stream)
            call.stream.close()
            await self._settle(call)

    async def _relay(self, call: Call, spec: replica_pb2.GenerationSpec, context: Context) -> None:
        """Write every event. While one is being written news gathers, and becomes one event a choice."""
        stream, answer, row, write = call.stream, call.answer, call.row, context.write
        started = api.Started(
            request_id=call.request_id,
            model=call.model.name,
            prompt_tokens=call.prompt_tokens,
            seed=spec.sampling.seed,
            resume_token=call.resume_token,
        )
        # Set before the first write: over HTTP they are headers.
        context.set_trailing_metadata(tuple(row.headers.items()))
        await write(api.GenerateResponse(started=started))
        while not stream.is_over:
            news = await stream.next()
            before = answer.completion_tokens
            events = answer.take(news)
            accepted = answer.completion_tokens - before
            if accepted and call.first_token is None:
                call.first_token = self._clock.monotonic()
            if (written_ahead := row.accept(accepted)) is not None:
                await written_ahead
            for entry in news:
                if answer.is_over(entry.choice):
                    stream.close_choice(entry.choice, by_replica=bool(entry.end))
            for event in events:
                await write(event)
            stream.release()
        await write(answer.finished(self._usage(call), self._timing(call)))

    def _usage(self, call: Call) -> api.Usage:
        return api.Usage(
            prompt_tokens=call.prompt_tokens,
            cached_prompt_tokens=call.stream.cached_prompt_tokens,
            completion_tokens=call.answer.completion_tokens,
            reasoning_tokens=call.answer.reasoning_tokens,
            device_seconds=call.stream.device_seconds,
        )

    def _timing(self, call: Call) -> api.Timing:
        now = self._clock.monotonic()
        first = call.first_token if call.first_token is not None else now
        return api.Timing(time_to_first_token=duration_of(first - call.arrived), total=duration_of(now - call.arrived))

    async def _settle(self, call: Call) -> None:
        """Close the ledger's entry and count; comes with every ending."""
        tokens = call.answer.completion_tokens
        cached = call.stream.cached_prompt_tokens
        attempts = call.stream.num_attempts
        # What failed by our doing before its first token, or reached no replica, costs nothing.
        is_free = not tokens and (not attempts or call.ending is Ending.FAILED)
        prompt = 0 if is_free else call.prompt_tokens
        name = call.model.name
        # Shielded: a client that goes away twice over must not leave an entry open.
        settlement = Settlement(
            call.ending, prompt, cached, tokens, attempts, call.answer.reasoning_tokens, call.stream.device_seconds
        )
        await asyncio.shield(call.row.settle(settlement))
        self._metrics.observe(self._figures(call))
        log.info(
            "%s: prompt %d (%d cached), completion %d, attempts %d",
            *(call.ending.value, call.prompt_tokens, cached, tokens, attempts),
            extra=about(request=call.request_id, tenant=current_caller().tenant, model=name),
        )
        used = {"gen_ai.usage.input_tokens": call.prompt_tokens, "gen_ai.usage.output_tokens": tokens}
        current_span().set({**used, "argosy.cached_tokens": cached, "argosy.attempts": attempts})
        if call.ending is Ending.COMPLETE:
            self._fleet.observe_answer(name, tokens // max(len(call.answer), 1))

    def _figures(self, call: Call) -> RequestFigures:
        stream, arrived = call.stream, call.arrived
        return RequestFigures(
            model=call.model.name,
            tenant=current_caller().tenant,
            prompt_tokens=call.prompt_tokens,
            cached_tokens=stream.cached_prompt_tokens,
            completion_tokens=call.answer.completion_tokens,
            attempts=stream.num_attempts,
            total=self._clock.monotonic() - arrived,
            queued=None if stream.sent_at is None else stream.sent_at - arrived,
            first_token=None if call.first_token is None else call.first_token - arrived,
            gaps=tuple(stream.gaps),
            device_seconds=stream.device_seconds,
        )


def _check_idempotency_key(key: str) -> None:
    if len(key) > MAX_IDEMPOTENCY_KEY:
        violation = FieldViolation("idempotency_key", f"must be at most {MAX_IDEMPOTENCY_KEY} characters")
        raise ServiceError(Reason.INVALID_FIELD, violations=(violation,))
