"""The requests that still have open choices, and what their routers are told of them. Knows deltas and connections; no
scheduler, no ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from argosy.internal.v1 import replica_pb2
from cluster.replica.connection import Connection
from cluster.replica.plan import EndReason, RequestKey, SequenceEvent, StepPlan
from cluster.telemetry.tracing import NO_SPAN, Span

_ENDS: dict[EndReason | None, replica_pb2.EndReason] = {
    None: replica_pb2.END_REASON_UNSPECIFIED,
    EndReason.STOP: replica_pb2.END_REASON_STOP,
    EndReason.LENGTH: replica_pb2.END_REASON_LENGTH,
    EndReason.DEADLINE: replica_pb2.END_REASON_DEADLINE,
}

logger = logging.getLogger(__name__)

Logprobs = replica_pb2.TokenLogprobsData
SampledRow = tuple[RequestKey, int, int]
"""Request, choice, index of the token in the choice."""


@dataclass(slots=True)
class Live:
    """One of them."""

    connection: Connection
    stream_id: int
    spec: replica_pb2.GenerationSpec
    open_choices: set[int]
    logprobs: dict[tuple[int, int], Logprobs] = field(default_factory=dict)
    """By choice and token index, until the token itself is delivered."""
    has_begun: bool = False
    """A token of it was sampled here."""
    queued_at: float | None = None
    """When it arrived; None once it is in a step."""
    span: Span = NO_SPAN
    about: dict[str, dict[str, object]] = field(default_factory=dict)
    """For log lines about it."""
    device_seconds: float = 0.0
    """Since its last delta."""

    def tell(self, event: SequenceEvent) -> None:
        """Its router hears of new tokens, or of the end of a choice."""
        if not self.has_begun:
            self.has_begun = True
            self.span.event("first token")
        delta = replica_pb2.TokenDelta(
            stream_id=self.stream_id,
            choice=event.choice,
            first_index=event.first_index,
            token_ids=event.token_ids,
            end=_ENDS[event.end],
            cached_prompt_tokens=event.cached_prompt_tokens,
            device_seconds=self.device_seconds,
        )
        self.device_seconds = 0.0
        if self.logprobs:
            indices = range(event.first_index, event.first_index + len(event.token_ids))
            delta.logprobs.extend(self.logprobs.pop((event.choice, index)) for index in indices)
        self.connection.add(delta)
        if event.end:
            self.open_choices.discard(event.choice)

    def end(self, end: replica_pb2.EndReason, detail: str, *, suspect: bool = False) -> None:
        """Its router hears that every choice which is still open ends."""
        self.span.end(detail)
        logger.info("ended here: %s", detail, extra=self.about)
        for choice in sorted(self.open_choices):
            delta = replica_pb2.TokenDelta(
                stream_id=self.stream_id, choice=choice, end=end, detail=detail, suspect=suspect
            )
            self.connection.add(delta)


@dataclass(frozen=True, slots=True)
class Flight:
    """A step whose answer is still out."""

    plan: StepPlan
    predicted_seconds: float
    reporting: tuple[SampledRow, ...]
    """Rows that asked for log probabilities, in row order."""


def suspects(live: Mapping[RequestKey, Live], flights: Iterable[Flight]) -> set[RequestKey]:
    """Requests in flight of which no token was ever sampled here: one of them may be what kills ranks."""
    keys = {row.key for flight in flights for row in flight.plan.rows}
    return {key for key in keys if (entry := live.get(key)) and not entry.has_begun}


def sampled_rows(live: Mapping[RequestKey, Live], plan: StepPlan) -> tuple[SampledRow, ...]:
    """Rows of a step that asked for log probabilities, in row order."""
    rows = []
    for row in plan.rows:
        entry = live.get(row.key)
        if row.samples and entry and entry.spec.HasField("top_logprobs"):
            index = row.start_position + row.num_tokens - len(entry.spec.prompt_token_ids)
            rows.append((row.key, row.choice, index))
    return tuple(rows)


def keep_logprobs(live: Mapping[RequestKey, Live], rows: Iterable[SampledRow], logprobs: Iterable[Logprobs]) -> None:
    """Keep a step's log probabilities until their tokens are delivered."""
    for (key, choice, index), told in zip(rows, logprobs, strict=True):
        if entry := live.get(key):
            entry.logprobs[choice, index] = told


def share_out(live: Mapping[RequestKey, Live], plan: StepPlan, device_seconds: float) -> None:
    """Charge a step's device time to its requests by their tokens."""
    share = device_seconds / max(plan.num_prefill_tokens + plan.num_decode_tokens, 1)
    for row in plan.rows:
        if entry := live.get(row.key):
            entry.device_seconds += share * row.num_tokens


def rivals(live: Mapping[RequestKey, Live], spec: replica_pb2.GenerationSpec) -> tuple[list[RequestKey], bool]:
    """Who else has the request that `spec` is: its client may have resumed it, at another router, since it was sent.

    Returns:
        Those of an earlier generation, which must end; and whether one of a later generation is here: then `spec` must.
    """
    same = [(key, entry.spec.generation) for key, entry in live.items() if entry.spec.request_id == spec.request_id]
    earlier = [key for key, generation in same if generation < spec.generation]
    return earlier, any(generation > spec.generation for _, generation in same)
