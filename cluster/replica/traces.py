"""The spans of one engine: one a traced request, and now and then one for a step. Knows plans; sends nothing."""

from __future__ import annotations

from collections.abc import Callable

from argosy.internal.v1 import replica_pb2
from cluster.replica.plan import RequestKey, StepPlan
from cluster.telemetry.tracing import NO_SPAN, NoTracer, Span, Tracer


class RequestTraces:
    """Makes them."""

    def __init__(self, tracer: Tracer | None = None, step_every: int = 1) -> None:
        """`step_every`: every so manieth step is a span, if a traced request is in it."""
        self._tracer = tracer or NoTracer()
        self._step_every = step_every
        self._num_begun = 0
        self._num_steps = 0

    def begin(self, spec: replica_pb2.GenerationSpec) -> Span:
        """A request arrived; what is not traced at its router is not traced here."""
        if not spec.traceparent:
            return NO_SPAN
        self._num_begun += 1
        attributes: dict[str, str | int] = {
            "argosy.request_id": spec.request_id,
            "gen_ai.usage.input_tokens": len(spec.prompt_token_ids),
            "argosy.emitted_tokens": sum(len(choice.emitted_token_ids) for choice in spec.choices),
        }
        return self._tracer.start("serve", "server", spec.traceparent, attributes)

    def step(self, plan: StepPlan, seconds: float, span_of: Callable[[RequestKey], Span]) -> None:
        """A step ended. Its span is under the first of its traced requests, and linked to the others."""
        self._num_steps += 1
        if not self._num_begun or self._num_steps % self._step_every:
            return
        served = dict.fromkeys(context for row in plan.rows if (context := span_of(row.key).traceparent))
        if not served:
            return
        parent, *others = served
        attributes = {
            "argosy.step": plan.step,
            "argosy.lane": plan.lane,
            "argosy.sequences": len(plan.rows),
            "argosy.prefill_tokens": plan.num_prefill_tokens,
            "argosy.decode_tokens": plan.num_decode_tokens,
        }
        self._tracer.start("step", "internal", parent, attributes, links=others, seconds_ago=seconds).end()
