"""What a line of a batch's input asks for, and what a line of its output says. Pure: text and messages, no files.

Two forms are read, each answered in kind: our own, `{"id": …, "prompt" | "messages": …, parameters}`, and that of
OpenAI's batch API, `{"custom_id": …, "url": …, "body": {…}}` (platform.openai.com/docs/guides/batch).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from argosy.v1 import inference_pb2 as api

_OWN_KEY = re.compile(r"line-[0-9]+")
_URLS = Literal["/v1/chat/completions", "/v1/completions"]
_ROLES = {
    "system": api.ROLE_SYSTEM,
    "developer": api.ROLE_SYSTEM,
    "user": api.ROLE_USER,
    "assistant": api.ROLE_ASSISTANT,
    "tool": api.ROLE_TOOL,
}
_REASONS = {api.FINISH_REASON_STOP: "stop", api.FINISH_REASON_LENGTH: "length"}
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line, ready to be asked."""

    number: int
    """Of its line, from 1."""
    key: str
    """What its answer is found by: the line's id, or `line-NUMBER` if it has none."""
    request: api.GenerateRequest
    """Its model is empty if the line names none."""
    openai: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """One line that cannot be asked."""

    number: int
    key: str
    field: str
    """Path of the field that is wrong; empty if the line as a whole is."""
    message: str
    openai: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model made of one prompt."""

    model: str
    texts: Sequence[str]
    """By choice."""
    finished: api.Finished


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class _Parameters(BaseModel):
    """What both forms say about an answer. Limits are the router's to check; here only the shape is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    prompt: str | None = None
    messages: list[_Message] | None = Field(None, min_length=1)
    max_tokens: int | None = Field(None, ge=0, lt=2**32)
    max_completion_tokens: int | None = Field(None, ge=0, lt=2**32)
    n: int | None = Field(None, ge=0, lt=2**32)
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=0, lt=2**32)
    min_p: float | None = None
    seed: int | None = Field(None, ge=0, lt=2**64)
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _one_input(self) -> _Parameters:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give `prompt` or `messages`, one of the two")
        return self


class _OwnLine(_Parameters):
    id: str | None = Field(None, min_length=1)


class _OpenAiLine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    custom_id: str = Field(min_length=1)
    method: Literal["POST"] = "POST"
    url: _URLS = "/v1/chat/completions"
    body: _Parameters


def read_line(number: int, text: str, taken: dict[str, int]) -> Prompt | Refused:
    """One line of input.

    Args:
        number: of the line, from 1.
        taken: line numbers by key, of the lines before; this line's is added.
    """
    parsed = _parse(number, text)
    if (first := taken.setdefault(parsed.key, number)) != number:
        field = "custom_id" if parsed.openai else "id"
        # Its own number is its key: the answer to the first one must not be taken for this line's.
        return Refused(number, f"line-{number}", field, f"{parsed.key!r} is the id of line {first} too", parsed.openai)
    return parsed


def _parse(number: int, text: str) -> Prompt | Refused:
    nameless = f"line-{number}"
    try:
        raw = json.loads(text)
    except ValueError as error:
        return Refused(number, nameless, "", f"not JSON: {error}")
    if not isinstance(raw, dict):
        return Refused(number, nameless, "", f"expected an object, got {type(raw).__name__}")
    openai = "custom_id" in raw or "body" in raw
    name = raw.get("custom_id" if openai else "id")
    key = name if isinstance(name, str) and name else nameless
    if _OWN_KEY.fullmatch(key) and key != nameless:
        field = "custom_id" if openai else "id"
        return Refused(number, nameless, field, f"{key!r} is how lines without an id are named; choose another", openai)
    try:
        parameters = _OpenAiLine.model_validate(raw).body if openai else _OwnLine.model_validate(raw)
        return Prompt(number, key, _request(parameters), openai)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return Refused(number, key, field, first["msg"].removeprefix("Value error, "), openai)
    except ValueError as error:
        return Refused(number, key, "logit_bias", str(error), openai)


def _request(line: _Parameters) -> api.GenerateRequest:
    """
    Raises:
        ValueError: a key of `logit_bias` is no token id.
    """
    request = api.GenerateRequest(model=line.model, priority_class=api.PRIORITY_CLASS_BATCH)
    if line.prompt is not None:
        request.prompt = line.prompt
    for message in line.messages or ():
        request.chat.messages.add(role=_ROLES[message.role], content=message.content)
    limit = line.max_tokens if line.max_tokens is not None else line.max_completion_tokens
    if limit is not None:
        request.max_tokens = limit
    if line.n is not None:
        request.num_choices = line.n
    request.stop.strings.extend([line.stop] if isinstance(line.stop, str) else line.stop or ())
    for name in _SAMPLING:
        if (value := getattr(line, name)) is not None:
            setattr(request.sampling, name, value)
    for token, bias in (line.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and int(token) < 2**32):
            raise ValueError(f"{token!r} is not a token id")
        request.sampling.logit_bias[int(token)] = bias
    if line.json_schema is not None:
        request.response_format.json_schema = json.dumps(line.json_schema)
    elif line.regex is not None:
        request.response_format.regex = line.regex
    elif line.grammar is not None:
        request.response_format.grammar = line.grammar
    return request


def answer_record(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    """The output line of an answered prompt, in the form that it was asked in."""
    reasons = [_REASONS.get(choice.reason, "unknown") for choice in answer.finished.choices]
    counted = answer.finished.usage
    usage = {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
    }
    chat = prompt.request.WhichOneof("input") == "chat"
    choices: list[dict[str, Any]] = []
    for index, (text, reason) in enumerate(zip(answer.texts, reasons, strict=True)):
        said = {"message": {"role": "assistant", "content": text}} if prompt.openai and chat else {"text": text}
        choices.append({"index": index, **said, "finish_reason": reason})
    body = {"model": answer.model, "choices": choices, "usage": usage}
    if not prompt.openai:
        return {"id": prompt.key, **body}
    body = {"object": "chat.completion" if chat else "text_completion", **body}
    return {"custom_id": prompt.key, "response": {"status_code": 200, "body": body}, "error": None}


def refusal_record(refused: Refused) -> dict[str, Any]:
    """The output line of a line that was not answered: it names the line and the field."""
    where = f"line {refused.number}" + (f", {refused.field}" if refused.field else "")
    error = {"line": refused.number, "field": refused.field or None, "message": f"{where}: {refused.message}"}
    if refused.openai:
        return {"custom_id": refused.key, "response": None, "error": {"code": "invalid_request", **error}}
    return {"id": refused.key, "error": error}


def record_key(record: object) -> str | None:
    """Which prompt an output line answers; None if it is none of ours."""
    if not isinstance(record, dict):
        return None
    key = record.get("id", record.get("custom_id"))
    return key if isinstance(key, str) and key else None
