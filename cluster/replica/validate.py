"""Refuses every generation spec that no honest router would send. Knows the limits of one replica; keeps nothing.

A router has checked the client's request already. The engine checks again because a defect or a stranger there must
not reach the scheduler or the device, where a bad number ends every request and not only its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from argosy.internal.v1 import replica_pb2
from cluster.replica.plan import ChoiceStart, Refused, Request, RequestKey

MAX_CHOICES = 16
MAX_STOP_TOKENS = 256
MAX_LOGIT_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_ID_BYTES = 128
LOWEST_PRIORITY = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What this replica can serve."""

    vocab_size: int
    context_length: int


def read_spec(spec: replica_pb2.GenerationSpec, key: RequestKey, limits: Limits, now: float) -> Request:
    """The scheduler's view of a checked spec.

    Raises:
        Refused: a field is out of range; the text names it.
    """
    _check_prompt(spec, limits)
    _check_choices(spec, limits)
    _check_stops(spec, limits)
    check_sampling(spec.sampling, limits.vocab_size)
    _require(spec.priority <= LOWEST_PRIORITY, f"priority: {spec.priority} is not a class")
    _require(len(spec.request_id) <= MAX_ID_BYTES, "request_id: too long")
    _require(len(spec.cache_domain) <= MAX_ID_BYTES, "cache_domain: too long")
    _require(spec.top_logprobs <= MAX_TOP_LOGPROBS, f"top_logprobs: at most {MAX_TOP_LOGPROBS}")
    _require(spec.initial_credit >= 1, "initial_credit: must be at least 1")
    return Request(
        key=key,
        prompt=tuple(spec.prompt_token_ids),
        choices=tuple(ChoiceStart(choice.index, tuple(choice.emitted_token_ids)) for choice in spec.choices),
        max_tokens=spec.max_tokens,
        min_tokens=spec.min_tokens,
        stop_token_ids=frozenset(spec.stop_token_ids),
        deadline=now + _seconds_left(spec),
        priority=spec.priority,
        cache_domain=spec.cache_domain,
        credit=spec.initial_credit,
        needs_permits=spec.HasField("grammar"),
    )


def check_sampling(sampling: replica_pb2.SamplingSpec, vocab_size: int) -> None:
    """Raises Refused: a sampling parameter is outside the range that inference.proto gives it."""
    _in_range("temperature", sampling.temperature, 0.0, 2.0)
    _require(sampling.top_k <= vocab_size, "sampling.top_k: larger than the vocabulary")
    _in_range("top_p", sampling.top_p, 0.0, 1.0, low_is_open=True)
    _in_range("min_p", sampling.min_p, 0.0, 1.0)
    _in_range("repetition_penalty", sampling.repetition_penalty, 0.0, 2.0, low_is_open=True)
    _in_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _in_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _require(len(sampling.logit_bias) <= MAX_LOGIT_BIASES, f"sampling.logit_bias: at most {MAX_LOGIT_BIASES} entries")
    _check_ids("sampling.logit_bias", sampling.logit_bias, vocab_size)
    for bias in sampling.logit_bias.values():
        _in_range("logit_bias", bias, -100.0, 100.0)


def _check_prompt(spec: replica_pb2.GenerationSpec, limits: Limits) -> None:
    length = len(spec.prompt_token_ids)
    _require(length >= 1, "prompt_token_ids: empty")
    _require(length < limits.context_length, f"prompt_token_ids: {length} of a context of {limits.context_length}")
    _check_ids("prompt_token_ids", spec.prompt_token_ids, limits.vocab_size)


def _check_choices(spec: replica_pb2.GenerationSpec, limits: Limits) -> None:
    _require(1 <= len(spec.choices) <= MAX_CHOICES, f"choices: 1 to {MAX_CHOICES}, not {len(spec.choices)}")
    _require(len({choice.index for choice in spec.choices}) == len(spec.choices), "choices: an index occurs twice")
    _require(spec.max_tokens >= 1, "max_tokens: must be at least 1")
    for choice in spec.choices:
        _require(choice.index < MAX_CHOICES, f"choices.index: must be below {MAX_CHOICES}")
        emitted = len(choice.emitted_token_ids)
        _require(emitted < spec.max_tokens, f"choices.emitted_token_ids: {emitted} of {spec.max_tokens} are all")
        whole = len(spec.prompt_token_ids) + emitted
        _require(whole < limits.context_length, "choices.emitted_token_ids: the context is full")
        _check_ids("choices.emitted_token_ids", choice.emitted_token_ids, limits.vocab_size)


def _check_stops(spec: replica_pb2.GenerationSpec, limits: Limits) -> None:
    _require(len(spec.stop_token_ids) <= MAX_STOP_TOKENS, f"stop_token_ids: at most {MAX_STOP_TOKENS}")
    _check_ids("stop_token_ids", spec.stop_token_ids, limits.vocab_size)
    _require(spec.min_tokens <= spec.max_tokens, "min_tokens: larger than max_tokens")


def _seconds_left(spec: replica_pb2.GenerationSpec) -> float:
    if not spec.HasField("time_left"):
        raise Refused("time_left: not set")
    return spec.time_left.seconds + spec.time_left.nanos / 1e9


def _check_ids(field: str, token_ids: Iterable[int], vocab_size: int) -> None:
    largest = max(token_ids, default=0)
    _require(largest < vocab_size, f"{field}: token {largest} is not in the vocabulary of {vocab_size}")


def _in_range(field: str, value: float, low: float, high: float, *, low_is_open: bool = False) -> None:
    inside = math.isfinite(value) and low <= value <= high and not (low_is_open and value == low)
    _require(inside, f"sampling.{field}: {value} is outside {'(' if low_is_open else '['}{low}, {high}]")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise Refused(problem)
