"""From the events of an answer to what the Responses API tells of it, whole and as typed events. Knows both forms; no
network.

An answer has at most one message, then its calls of tools. Nothing is stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from argosy.v1 import inference_pb2 as api
from cluster.router.openai.tool_calls import Call, CallFinder, Found

Json = dict[str, Any]


class ResponseAnswer:
    """`response`."""

    def __init__(self, echo: Json, *, tools: Sequence[str] = (), must_call: bool = False) -> None:
        """
        Args:
            echo: fields of the request that the response repeats.
            tools: names of those that may be called.
            must_call: the whole answer is constrained to one call.
        """
        self._echo = echo
        self._finder = CallFinder(tools, must_call=must_call) if tools else None
        self._created = time.time()
        self._id = ""
        self._model = ""
        self._text: str | None = None
        """None: no message has begun."""
        self._output: list[Json] = []
        self._num_events = 0
        self._result: Json = {}

    def start(self, started: api.Started) -> Iterator[Json]:
        """Begin."""
        self._id, self._model = started.request_id, started.model
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def delta(self, delta: api.Delta) -> Iterator[Json]:
        """A piece of the answer."""
        yield from self._tell(self._finder.push(delta.text) if self._finder else Found(delta.text))

    def finish(self, finished: api.Finished) -> Iterator[Json]:
        """The answer is over."""
        if self._finder:
            yield from self._tell(self._finder.finish())
        yield from self._end_message()
        is_cut = finished.choices[0].reason == api.FINISH_REASON_LENGTH
        status = "incomplete" if is_cut else "completed"
        self._result = self._response(status)
        self._result["usage"] = usage_object(finished.usage)
        self._result["completed_at"] = None if is_cut else int(time.time())
        if is_cut:
            self._result["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._event(f"response.{status}", response=self._result)

    def end(self) -> Iterator[Json]:
        """Nothing follows."""
        yield from ()

    def whole(self) -> Json:
        """The answer at once."""
        return self._result

    def _tell(self, found: Found) -> Iterator[Json]:
        if found.text and not (found.text.isspace() and (self._output or found.calls)):
            yield from self._tell_text(found.text)
        for call in found.calls:
            yield from self._end_message()
            yield from self._tell_call(call)

    def _tell_text(self, text: str) -> Iterator[Json]:
        place = {"item_id": self._message_id, "output_index": len(self._output), "content_index": 0}
        if self._text is None:
            self._text = ""
            item = {**self._message(), "status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=len(self._output), item=item)
            yield self._event("response.content_part.added", **place, part=_part(""))
        self._text += text
        yield self._event("response.output_text.delta", **place, delta=text, logprobs=[])

    def _end_message(self) -> Iterator[Json]:
        if self._text is None:
            return
        place = {"item_id": self._message_id, "output_index": len(self._output), "content_index": 0}
        item = self._message()
        yield self._event("response.output_text.done", **place, text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(self._text))
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._text = None

    def _tell_call(self, call: Call) -> Iterator[Json]:
        index = len(self._output)
        item = {
            "id": f"fc_{self._id}_{index}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_{self._id}_{index}",
            "name": call.name,
            "arguments": call.arguments,
        }
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._event("response.output_item.done", output_index=index, item=item)
        self._output.append(item)

    @property
    def _message_id(self) -> str:
        return f"msg_{self._id}_{len(self._output)}"

    def _message(self) -> Json:
        part = _part(self._text or "")
        kind = {"type": "message", "role": "assistant", "status": "completed"}
        return {"id": self._message_id, **kind, "content": [part]}

    def _event(self, kind: str, **fields: Any) -> Json:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event

    def _response(self, status: str) -> Json:
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": list(self._output),
            "previous_response_id": None,
            "store": False,
            **self._echo,
        }


def usage_object(usage: api.Usage) -> Json:
    """Usage in the words of responses."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
