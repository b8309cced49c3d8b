"""From the events of an answer to what the OpenAI API's two older ways tell of it, whole and in chunks. Knows both
forms; no network. Token texts come from the model's own tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from argosy.v1 import inference_pb2 as api
from cluster.router.openai.tool_calls import Call, CallFinder, Found

FINISH_REASONS = {api.FINISH_REASON_STOP: "stop", api.FINISH_REASON_LENGTH: "length"}
TokenText = Callable[[int], str]
Json = dict[str, Any]


@dataclass(slots=True)
class Choice:
    """What one choice has said."""

    index: int
    text: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    length: int = 0
    """Characters that entries of `logprobs` stand for."""


class _Answer:
    """What both have in common: an answer that is told by chunks or as a whole."""

    prefix = ""
    kind = ""

    def __init__(self, token_text: TokenText, fingerprint: str, *, include_usage: bool) -> None:
        self._token_text = token_text
        self._fingerprint = fingerprint
        self._include_usage = include_usage
        self._created = int(time.time())
        self._id = ""
        self._model = ""
        self._choices: dict[int, Choice] = {}
        self._endings: list[Json] = []
        self._usage: Json = {}

    def start(self, started: api.Started) -> Iterator[Json]:
        """Begin; yields the chunks that say so."""
        self._id, self._model = self._id or self.prefix + started.request_id, started.model
        yield from ()

    def _head(self, suffix: str = "") -> Json:
        return {
            "id": self._id,
            "object": self.kind + suffix,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }

    def _choice(self, index: int) -> Choice:
        return self._choices.setdefault(index, Choice(index))

    def end(self) -> Iterator[Json]:
        """The chunk after the last, if the client asked for usage."""
        if self._include_usage:
            yield {**self._head(self.chunk_suffix), "choices": [], "usage": self._usage}

    chunk_suffix = ""

    def whole(self) -> Json:
        """The answer at once."""
        choices = sorted(self._endings, key=lambda choice: choice["index"])
        return {**self._head(), "choices": choices, "usage": self._usage}

    def _add_usage(self, usage: api.Usage) -> None:
        new = usage_object(usage)
        self._usage = _sum(self._usage, new) if self._usage else new


class ChatAnswer(_Answer):
    """`chat.completion`."""

    prefix = "chatcmpl-"
    kind = "chat.completion"
    chunk_suffix = ".chunk"

    def __init__(
        self,
        token_text: TokenText,
        fingerprint: str,
        *,
        include_usage: bool = False,
        tools: Sequence[str] = (),
        must_call: bool = False,
        with_logprobs: bool = False,
    ) -> None:
        super().__init__(token_text, fingerprint, include_usage=include_usage)
        self._tools, self._must_call, self._with_logprobs = tools, must_call, with_logprobs
        self._finders: dict[int, CallFinder] = {}

    def delta(self, delta: api.Delta) -> Iterator[Json]:
        """A piece of a choice."""
        first = delta.choice not in self._choices
        choice = self._choice(delta.choice)
        if first:
            yield self._chunk(choice, {"role": "assistant", "content": ""})
        entries = [
            chat_logprob(self._token_text, token_id, entry)
            for token_id, entry in zip(delta.token_ids, delta.logprobs, strict=False)
        ]
        choice.logprobs += entries
        found = self._finder(delta.choice).push(delta.text) if self._tools else Found(delta.text)
        yield from self._tell(choice, found, entries)

    def finish(self, finished: api.Finished) -> Iterator[Json]:
        """How every choice ended."""
        self._add_usage(finished.usage)
        for outcome in finished.choices:
            choice = self._choice(outcome.choice)
            if self._tools:
                yield from self._tell(choice, self._finder(outcome.choice).finish(), [])
            reason = FINISH_REASONS[outcome.reason]
            if choice.calls and reason == "stop":
                reason = "tool_calls"
            self._endings.append(self._ending(choice, reason))
            yield self._chunk(choice, {}, reason)

    def _finder(self, index: int) -> CallFinder:
        return self._finders.setdefault(index, CallFinder(self._tools, must_call=self._must_call))

    def _tell(self, choice: Choice, found: Found, logprobs: list[Json]) -> Iterator[Json]:
        # Line breaks between calls are no text.
        if found.text and not (found.text.isspace() and (choice.calls or found.calls)):
            choice.text += found.text
            yield self._chunk(choice, {"content": found.text}, logprobs=logprobs)
        elif logprobs:
            yield self._chunk(choice, {"content": ""}, logprobs=logprobs)
        for call in found.calls:
            entry = {"index": len(choice.calls), **self._call_object(choice, len(choice.calls), call)}
            choice.calls.append(call)
            yield self._chunk(choice, {"tool_calls": [entry]})

    def _call_object(self, choice: Choice, number: int, call: Call) -> Json:
        name = f"call_{self._id.removeprefix(self.prefix)}_{choice.index}_{number}"
        return {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

    def _chunk(
        self, choice: Choice, delta: Json, reason: str | None = None, logprobs: list[Json] | None = None
    ) -> Json:
        content = {"content": list(logprobs), "refusal": None} if logprobs else None
        entry = {"index": choice.index, "delta": delta, "logprobs": content, "finish_reason": reason}
        return {**self._head(".chunk"), "choices": [entry]}

    def _ending(self, choice: Choice, reason: str) -> Json:
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [self._call_object(choice, i, call) for i, call in enumerate(choice.calls)]
        logprobs = {"content": choice.logprobs, "refusal": None} if self._with_logprobs else None
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": reason}


class CompletionAnswer(_Answer):
    """`text_completion`, of one prompt or several: the choices of each prompt follow those of the one before."""

    prefix = "cmpl-"
    kind = "text_completion"

    def __init__(
        self, token_text: TokenText, fingerprint: str, *, include_usage: bool = False, with_logprobs: bool = False
    ) -> None:
        super().__init__(token_text, fingerprint, include_usage=include_usage)
        self._with_logprobs = with_logprobs

    def delta(self, delta: api.Delta, offset: int = 0) -> Iterator[Json]:
        """A piece of a choice; `offset` is the index of its prompt's first one."""
        choice = self._choice(offset + delta.choice)
        choice.text += delta.text
        entries = []
        for token_id, entry in zip(delta.token_ids, delta.logprobs, strict=False):
            entries.append(text_logprob(self._token_text, token_id, entry, choice.length))
            choice.length += len(entries[-1]["token"])
        choice.logprobs += entries
        if delta.text or entries:
            yield self._chunk(choice, delta.text, entries, None)

    def finish(self, finished: api.Finished, offset: int = 0) -> Iterator[Json]:
        """How every choice of a prompt ended."""
        self._add_usage(finished.usage)
        for outcome in finished.choices:
            choice = self._choice(offset + outcome.choice)
            reason = FINISH_REASONS[outcome.reason]
            self._endings.append(self._entry(choice, choice.text, choice.logprobs, reason))
            yield self._chunk(choice, "", [], reason)

    def _chunk(self, choice: Choice, text: str, entries: list[Json], reason: str | None) -> Json:
        return {**self._head(), "choices": [self._entry(choice, text, entries, reason)]}

    def _entry(self, choice: Choice, text: str, entries: list[Json], reason: str | None) -> Json:
        logprobs = None
        if self._with_logprobs:
            columns = {"tokens": "token", "token_logprobs": "logprob", "top_logprobs": "top", "text_offset": "offset"}
            logprobs = {name: [entry[column] for entry in entries] for name, column in columns.items()}
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def usage_object(usage: api.Usage) -> Json:
    """Usage in the words of completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def chat_logprob(token_text: TokenText, token_id: int, entry: api.TokenLogprobs) -> Json:
    """One token with its alternatives."""
    top = [_token(token_text, other.token_id, other.logprob) for other in entry.top]
    return {**_token(token_text, token_id, entry.logprob), "top_logprobs": top}


def text_logprob(token_text: TokenText, token_id: int, entry: api.TokenLogprobs, offset: int) -> Json:
    """The same, for columns."""
    top = {token_text(other.token_id): other.logprob for other in entry.top} or None
    return {"token": token_text(token_id), "logprob": entry.logprob, "top": top, "offset": offset}


def _token(token_text: TokenText, token_id: int, logprob: float) -> Json:
    text = token_text(token_id)
    # The bytes of a token that is no whole character are not known from its text.
    return {"token": text, "logprob": logprob, "bytes": None if "�" in text else list(text.encode())}


def _sum(a: Json, b: Json) -> Json:
    return {key: _sum(value, b[key]) if isinstance(value, dict) else value + b[key] for key, value in a.items()}
