"""The one validator: a public request becomes a `GenerationSpec`, or every field that is wrong is named.

Every front end goes through it, and the engine takes nothing else. Knows limits and messages; no tokenizer, no network.
`check` needs the request alone, `specify` also its prompt in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from google.protobuf import duration_pb2

from argosy.internal.v1 import replica_pb2
from argosy.v1 import inference_pb2 as api
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.router import conversation, response_format

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
LEAST_TEMPERATURE = 1e-4
"""Below it sampling cannot be told from greedy, and logits divided by it overflow."""

PRIORITIES = {
    api.PRIORITY_CLASS_UNSPECIFIED: 0,
    api.PRIORITY_CLASS_INTERACTIVE: 0,
    api.PRIORITY_CLASS_SHEDDABLE: 1,
    api.PRIORITY_CLASS_BATCH: 2,
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request that leaves a field unset gets: the checkpoint's published values, else no effect."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model allows."""

    name: str
    vocabulary_size: int
    context_length: int
    """Most tokens of prompt and answer together."""
    max_tokens: int
    """Most tokens that one choice may ask for."""
    end_token_ids: tuple[int, ...]
    has_chat_template: bool
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


def check(request: api.GenerateRequest, model: ModelLimits) -> None:
    """Refuse what is wrong whatever the prompt's tokens are.

    Raises:
        ServiceError: INVALID_FIELD with every violation.
    """
    violations = tuple(
        FieldViolation(path, description)
        for problems in (
            _input(request, model),
            _lengths(request, model),
            _sampling(request, model),
            _stop(request, model),
            response_format.problems(request),
        )
        for path, description in problems
    )
    if violations:
        raise ServiceError(Reason.INVALID_FIELD, violations=violations)


def specify(
    request: api.GenerateRequest,
    prompt: Sequence[int],
    model: ModelLimits,
    *,
    request_id: str,
    seed: int,
    cache_domain: bytes,
) -> replica_pb2.GenerationSpec:
    """The spec of a checked request: every default filled in, no choice begun, no time or credit set.

    Args:
        prompt: the input in tokens.
        seed: used if the request brings none.
        cache_domain: only requests of equal domain share cached prefixes.

    Raises:
        ServiceError: INVALID_FIELD, the prompt is empty or leaves no room for an answer.
    """
    path = request.WhichOneof("input") or "input"
    room = model.context_length - len(prompt)
    if not prompt:
        raise _invalid(path, "has no tokens; at least one is needed")
    if room < 1:
        limit = f"has {len(prompt)} tokens; prompt and answer together may have {model.context_length}"
        raise _invalid(path, f"{limit}, so the prompt at most {model.context_length - 1}")
    max_tokens = min(request.max_tokens if request.HasField("max_tokens") else model.max_tokens, room)
    end_token_ids = () if request.stop.ignore_end_of_text else model.end_token_ids
    choices = request.num_choices if request.HasField("num_choices") else 1
    spec = replica_pb2.GenerationSpec(
        request_id=request_id,
        prompt_token_ids=prompt,
        choices=[replica_pb2.ChoiceState(index=index) for index in range(choices)],
        max_tokens=max_tokens,
        sampling=_sampling_spec(request.sampling, model, seed),
        stop_token_ids=sorted({*end_token_ids, *request.stop.token_ids}),
        min_tokens=min(request.stop.min_tokens, max_tokens),
        priority=PRIORITIES[request.priority_class],
        cache_domain=cache_domain,
        grammar=response_format.grammar_spec(request),
    )
    if request.HasField("top_logprobs"):
        spec.top_logprobs = request.top_logprobs
    return spec


def duration_of(seconds: float) -> duration_pb2.Duration:
    """A duration for `GenerationSpec.time_left`; an infinite one becomes a year."""
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(min(max(seconds, 0.0), 365 * 86400.0) * 1e9))
    return duration


Problems = Iterator[tuple[str, str]]


def _invalid(path: str, description: str) -> ServiceError:
    return ServiceError(Reason.INVALID_FIELD, violations=(FieldViolation(path, description),))


def _input(request: api.GenerateRequest, model: ModelLimits) -> Problems:
    kind = request.WhichOneof("input")
    if kind is None:
        yield "input", "is missing; set prompt, token_ids or chat"
    elif kind == "prompt":
        if not request.prompt:
            yield "prompt", "is empty"
    elif kind == "token_ids":
        if not request.token_ids.ids:
            yield "token_ids.ids", "is empty"
        yield from _token_ids("token_ids.ids", request.token_ids.ids, model)
    else:
        yield from _chat(request.chat, model)


def _chat(chat: api.Chat, model: ModelLimits) -> Problems:
    if not model.has_chat_template:
        yield "chat", f"model {model.name!r} has no chat template; use prompt"
    yield from conversation.problems(chat)


def _token_ids(path: str, token_ids: Sequence[int], model: ModelLimits) -> Problems:
    """At most one violation: a prompt in the wrong vocabulary has thousands."""
    if token_ids and max(token_ids) >= model.vocabulary_size:
        index, token_id = next((i, t) for i, t in enumerate(token_ids) if t >= model.vocabulary_size)
        yield f"{path}[{index}]", f"{token_id} is not a token of this model; ids end at {model.vocabulary_size - 1}"


def _lengths(request: api.GenerateRequest, model: ModelLimits) -> Problems:
    if request.HasField("max_tokens") and not 1 <= request.max_tokens <= model.max_tokens:
        yield "max_tokens", f"{request.max_tokens} is not between 1 and {model.max_tokens}"
    if request.HasField("num_choices") and not 1 <= request.num_choices <= MAX_CHOICES:
        yield "num_choices", f"{request.num_choices} is not between 1 and {MAX_CHOICES}"
    if request.HasField("top_logprobs") and request.top_logprobs > MAX_TOP_LOGPROBS:
        yield "top_logprobs", f"{request.top_logprobs} is not between 0 and {MAX_TOP_LOGPROBS}"
    if request.priority_class not in PRIORITIES:
        yield "priority_class", f"{request.priority_class} is not a priority class"


def _sampling(request: api.GenerateRequest, model: ModelLimits) -> Problems:
    sampling = request.sampling
    closed: tuple[tuple[str, float, float], ...] = (
        ("temperature", 0.0, 2.0),
        ("min_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
    )
    # Comparisons with NaN are false, so a range that must hold refuses it too.
    for name, low, high in closed:
        value = getattr(sampling, name)
        if sampling.HasField(name) and not low <= value <= high:
            yield f"sampling.{name}", f"{value:g} is not between {low:g} and {high:g}"
    for name, high in (("top_p", 1.0), ("repetition_penalty", 2.0)):
        value = getattr(sampling, name)
        if sampling.HasField(name) and not 0.0 < value <= high:
            yield f"sampling.{name}", f"{value:g} is not above 0 and at most {high:g}"
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        yield "sampling.logit_bias", f"has {len(sampling.logit_bias)} entries; at most {MAX_LOGIT_BIASES}"
        return
    for token_id, bias in sampling.logit_bias.items():
        if token_id >= model.vocabulary_size:
            yield (
                f"sampling.logit_bias[{token_id}]",
                f"is not a token of this model; ids end at {model.vocabulary_size - 1}",
            )
        elif not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
            yield (
                f"sampling.logit_bias[{token_id}]",
                f"{bias:g} is not between -{MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}",
            )


def _stop(request: api.GenerateRequest, model: ModelLimits) -> Problems:
    stop = request.stop
    if len(stop.strings) > MAX_STOP_STRINGS:
        yield "stop.strings", f"has {len(stop.strings)} entries; at most {MAX_STOP_STRINGS}"
    for index, string in enumerate(stop.strings[:MAX_STOP_STRINGS]):
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            yield f"stop.strings[{index}]", f"has {len(string)} characters; 1 to {MAX_STOP_CHARACTERS} are allowed"
    if len(stop.token_ids) > MAX_STOP_TOKEN_IDS:
        yield "stop.token_ids", f"has {len(stop.token_ids)} entries; at most {MAX_STOP_TOKEN_IDS}"
    yield from _token_ids("stop.token_ids", stop.token_ids, model)
    most = request.max_tokens if request.HasField("max_tokens") else model.max_tokens
    if stop.min_tokens > most:
        yield "stop.min_tokens", f"{stop.min_tokens} is more than max_tokens, {most}"


def _sampling_spec(sampling: api.Sampling, model: ModelLimits, seed: int) -> replica_pb2.SamplingSpec:
    def value(name: str, default: float) -> float:
        return getattr(sampling, name) if sampling.HasField(name) else default

    defaults = model.defaults
    temperature = value("temperature", defaults.temperature)
    return replica_pb2.SamplingSpec(
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_k=min(sampling.top_k if sampling.HasField("top_k") else defaults.top_k, model.vocabulary_size),
        top_p=value("top_p", defaults.top_p),
        min_p=value("min_p", defaults.min_p),
        seed=sampling.seed if sampling.HasField("seed") else seed,
        repetition_penalty=value("repetition_penalty", defaults.repetition_penalty),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
    )
