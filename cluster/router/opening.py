"""From a valid request to a call under way: its answer and stream are made, its row opened, its resume token issued.

A request begins here or goes on from where another router left off (`cluster/router/resume.py`). Writes to no client.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from argosy.internal.v1 import replica_pb2, resume_pb2
from argosy.v1 import inference_pb2 as api
from cluster import rpc
from cluster.clock import Clock
from cluster.config import RouterConfig
from cluster.identity.principal import current_caller
from cluster.ids import RequestId
from cluster.ledger.records import Ending, Reservation
from cluster.prefix import block_keys, block_name
from cluster.router.answer import Answer
from cluster.router.catalogue import ServedModel
from cluster.router.continuation import LiveStream
from cluster.router.fleet import Fleet
from cluster.router.metering import Ledger, Row
from cluster.router.resume import GRACE_SECONDS, LONGEST_SECONDS, Origin, Tickets, digest_of
from cluster.router.shedding import INTERACTIVE, admit
from cluster.telemetry.tracing import current_span

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Call:
    """One request on its way."""

    model: ServedModel
    request_id: RequestId
    arrived: float
    stream: LiveStream
    answer: Answer
    row: Row
    prompt_tokens: int
    resume_token: bytes
    ending: Ending = Ending.CANCELLED
    """What it is unless something else happens: only the client ends a call without our doing."""
    first_token: float | None = None


class Opener:
    """Opens calls at one router."""

    def __init__(
        self, fleet: Fleet, ledger: Ledger, clock: Clock, limits: RouterConfig, tickets: Tickets, region: str
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._clock = clock
        self._limits = limits
        self._tickets = tickets
        self._region = region

    async def open(
        self,
        request: api.GenerateRequest,
        spec: replica_pb2.GenerationSpec,
        origin: Origin,
        model: ServedModel,
        arrived: float,
    ) -> Call:
        """Everything that can refuse a valid request, then its entry in the ledger."""
        prompt: Sequence[int] = spec.prompt_token_ids
        tokenizer = await model.tokenizer()
        digest = digest_of(spec, request.stop, model.revision)
        checkpoints = self._tickets.checkpoints(origin, spec, digest)
        for choice in spec.choices:
            choice.emitted_token_ids.extend(origin.received.get(choice.index, ()))
        answer = Answer(spec, request.stop, tokenizer, prompt, checkpoints, origin.sequence)
        keys = block_keys(spec.cache_domain, model.revision, prompt, model.block_size)
        blocks = [block_name(key) for key in keys]
        deadline = self._clock.monotonic() + rpc.time_left()
        caller = current_caller()
        linger, regions = self._limits.coalesce_seconds, caller.policy.regions
        span = current_span()
        span.set({"gen_ai.response.id": spec.request_id, "gen_ai.request.max_tokens": spec.max_tokens})
        stream = LiveStream(spec, model.name, blocks, self._fleet, self._clock, deadline, linger, regions, span)
        for index in answer.over:
            stream.close_choice(index, by_replica=True)
        if spec.priority != INTERACTIVE and not origin.received:
            soonest = self._fleet.first_token_seconds(model.name, len(prompt), spec.max_tokens, blocks, regions)
            admit(spec.priority, soonest, rpc.time_left(), self._limits.admission)
        reservation = self._reservation(request, spec, model)
        row = await self._enter(reservation, origin)
        spec.generation = row.generation
        ticket = resume_pb2.ResumeTicket(
            request_id=origin.request_id,
            tenant=reservation.tenant,
            seed=spec.sampling.seed,
            digest=digest,
            expires_at=reservation.resumable_until,
            generation=row.generation,
            region=self._region,
        )
        token = self._tickets.issue(ticket)
        return Call(model, origin.request_id, arrived, stream, answer, row, len(prompt), token)

    def _reservation(
        self, request: api.GenerateRequest, spec: replica_pb2.GenerationSpec, model: ServedModel
    ) -> Reservation:
        caller = current_caller()
        return Reservation(
            RequestId(spec.request_id),
            model.name,
            len(spec.prompt_token_ids),
            spec.max_tokens * len(spec.choices),
            tenant=caller.tenant,
            subject=caller.subject,
            region=self._region,
            idempotency_key=request.idempotency_key or None,
            limits=caller.policy.limits,
            home=caller.policy.home if caller.policy.home != self._region else "",
            resumable_until=self._clock.wall() + min(rpc.time_left(), LONGEST_SECONDS) + GRACE_SECONDS,
        )

    async def _enter(self, reservation: Reservation, origin: Origin) -> Row:
        if origin.ticket is None:
            return await self._ledger.open(reservation)
        ticket, received = origin.ticket, origin.num_received
        row = await self._ledger.resume(reservation, received, ticket.generation, ticket.region)
        log.info("%s: goes on here after %d tokens", reservation.request_id, origin.num_received)
        return row
