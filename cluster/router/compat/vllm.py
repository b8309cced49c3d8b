"""`vllm.grpc.engine.VllmEngine`: routers and clients of vLLM's gRPC protocol ask for tokens. Knows their messages and
ours.

The messages come from the package `smg-grpc-proto`, which their own projects publish. The protocol names no model: the
one that is served is meant, or the one that the call's metadata names (`x-argosy-model`). A request's own id is only
used to abort it.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as wire
from smg_grpc_proto import vllm_engine_pb2_grpc

from argosy.v1 import inference_pb2 as api
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.identity.principal import current_caller
from cluster.router.catalogue import Catalogue, ServedModel
from cluster.router.compat.relay import Relay
from cluster.router.fleet import Fleet
from cluster.router.service import Context, InferenceService

MODEL_KEY = "x-argosy-model"
FINISH_REASONS = {api.FINISH_REASON_STOP: "stop", api.FINISH_REASON_LENGTH: "length"}
SERVICE: str = wire.DESCRIPTOR.services_by_name["VllmEngine"].full_name
_UNSERVED = ("kv_transfer_params", "mm_inputs", "media_refs")
_UNSERVED_SAMPLING = ("prompt_logprobs", "truncate_prompt_tokens", "structural_tag")
_PLAIN = ("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")


class VllmService(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc] # the package has no types
    """The protocol in front of the service."""

    def __init__(self, service: InferenceService, catalogue: Catalogue, fleet: Fleet) -> None:
        self._service = service
        self._catalogue = catalogue
        self._fleet = fleet
        self._running: dict[tuple[str, str], Relay] = {}
        """By tenant and the client's id."""
        self._started_at = time.monotonic()

    async def Generate(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802 (gRPC's name)
        """Chunks if asked for, then a completion for each choice."""
        asked = self._translated(request, context)
        key = (current_caller().tenant, request.request_id)
        relay = Relay(self._service, asked, context)
        if request.request_id:
            self._running[key] = relay
        outputs: dict[int, list[int]] = {}
        prompt_tokens = 0
        try:
            async for event in relay.events():
                match event.WhichOneof("event"):
                    case "started":
                        prompt_tokens = event.started.prompt_tokens
                    case "delta":
                        so_far = outputs.setdefault(event.delta.choice, [])
                        so_far.extend(event.delta.token_ids)
                        if request.stream:
                            yield _chunk(event.delta, prompt_tokens, len(so_far))
                    case _:
                        for outcome in event.finished.choices:
                            yield _complete(outcome, outputs.get(outcome.choice, []), event.finished.usage)
        finally:
            if self._running.get(key) is relay:
                del self._running[key]

    async def HealthCheck(self, request: Any, context: Context) -> Any:  # noqa: N802
        healthy = any(self._fleet.num_ready(name) for name in self._catalogue)
        return wire.HealthCheckResponse(healthy=healthy, message="" if healthy else "no replica is ready")

    async def Abort(self, request: Any, context: Context) -> Any:  # noqa: N802
        """End the caller's requests of these ids; unknown ones are over already."""
        for request_id in request.request_ids:
            if (relay := self._running.get((current_caller().tenant, request_id))) is not None:
                relay.abort()
        return wire.AbortResponse()

    async def GetModelInfo(self, request: Any, context: Context) -> Any:  # noqa: N802
        model = self._model(context)
        return wire.GetModelInfoResponse(
            model_path=model.name,
            served_model_name=model.name,
            is_generation=True,
            max_context_length=model.limits.context_length,
            vocab_size=model.limits.vocabulary_size,
            architectures=[model.architecture],
            eos_token_ids=model.limits.end_token_ids,
        )

    async def GetServerInfo(self, request: Any, context: Context) -> Any:  # noqa: N802
        uptime = time.monotonic() - self._started_at
        return wire.GetServerInfoResponse(
            active_requests=self._service.num_streams, uptime_seconds=uptime, server_type="argosy"
        )

    def _model(self, context: Context) -> ServedModel:
        """
        Raises:
            ServiceError: it is not served, or the call must say which.
        """
        for key, value in context.invocation_metadata() or ():
            if key == MODEL_KEY:
                return self._catalogue.find(str(value))
        if len(self._catalogue) == 1:
            return next(iter(self._catalogue.values()))
        raise _invalid(MODEL_KEY, f"is missing in the metadata; served are {', '.join(self._catalogue)}")

    def _translated(self, request: Any, context: Context) -> api.GenerateRequest:
        for name in _UNSERVED:
            if request.HasField(name):
                raise _invalid(name, "is not served")
        asked = api.GenerateRequest(model=self._model(context).name)
        match request.WhichOneof("input"):
            case "text":
                asked.prompt = request.text
            case "tokenized":
                asked.token_ids.ids.extend(request.tokenized.input_ids)
        _sample(asked, request.sampling_params)
        return asked


def _sample(asked: api.GenerateRequest, params: Any) -> None:
    """In that protocol a zero without presence means the default."""
    for name in _UNSERVED_SAMPLING:
        if params.HasField(name):
            raise _invalid(f"sampling_params.{name}", "is not served")
    if params.include_stop_str_in_output:
        raise _invalid("sampling_params.include_stop_str_in_output", "is not served")
    if params.HasField("temperature"):
        asked.sampling.temperature = params.temperature
    for name in _PLAIN:
        if value := getattr(params, name):
            setattr(asked.sampling, name, value)
    if params.HasField("seed"):
        asked.sampling.seed = params.seed % 2**64
    if params.HasField("max_tokens"):
        asked.max_tokens = params.max_tokens
    if params.HasField("logprobs"):
        asked.top_logprobs = max(params.logprobs, 0)
    if params.n:
        asked.num_choices = params.n
    for token_id, bias in params.logit_bias.items():
        if token_id < 0:
            raise _invalid(f"sampling_params.logit_bias[{token_id}]", "is not a token id")
        asked.sampling.logit_bias[token_id] = bias
    asked.stop.strings.extend(params.stop)
    asked.stop.token_ids.extend(params.stop_token_ids)
    asked.stop.ignore_end_of_text = params.ignore_eos
    asked.stop.min_tokens = params.min_tokens
    match params.WhichOneof("constraint"):
        case "json_schema" | "regex" | "grammar" as kind:
            setattr(asked.response_format, kind, getattr(params, kind))
        case "json_object" if params.json_object:
            asked.response_format.json_schema = '{"type": "object"}'
        case "choice":
            asked.response_format.regex = "|".join(map(re.escape, params.choice.choices))


def _chunk(delta: api.Delta, prompt_tokens: int, completion_tokens: int) -> Any:
    chunk = wire.GenerateStreamChunk(
        token_ids=delta.token_ids,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        index=delta.choice,
    )
    if delta.logprobs:
        told = chunk.output_logprobs
        told.token_ids.extend(delta.token_ids)
        for entry in delta.logprobs:
            told.token_logprobs.append(entry.logprob)
            told.top_logprobs.add(
                values=[other.logprob for other in entry.top], token_ids=[other.token_id for other in entry.top]
            )
    return wire.GenerateResponse(chunk=chunk)


def _complete(outcome: api.ChoiceOutcome, token_ids: list[int], usage: api.Usage) -> Any:
    complete = wire.GenerateComplete(
        output_ids=token_ids,
        finish_reason=FINISH_REASONS[outcome.reason],
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=len(token_ids),
        cached_tokens=usage.cached_prompt_tokens,
        index=outcome.choice,
    )
    if outcome.stop_string:
        complete.matched_stop_str = outcome.stop_string
    return wire.GenerateResponse(complete=complete)


def _invalid(field: str, description: str) -> ServiceError:
    return ServiceError(Reason.INVALID_FIELD, violations=(FieldViolation(field, description),))
