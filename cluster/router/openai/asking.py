"""From a body of the OpenAI API to the request that gRPC clients would have sent. Knows both forms.

Checks only what the second cannot say: ranges and lengths are the validator's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from argosy.v1 import inference_pb2 as api
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.router.openai import bodies

ROLES = {
    "system": api.ROLE_SYSTEM,
    "developer": api.ROLE_SYSTEM,
    "user": api.ROLE_USER,
    "assistant": api.ROLE_ASSISTANT,
    "tool": api.ROLE_TOOL,
}
MAX_PROMPTS = 16
_PLAIN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")

ToolChoice = str | None
"""none, auto, required, `=NAME` for one tool alone, or None for the default."""


def chat_request(body: bodies.ChatBody) -> api.GenerateRequest:
    """A chat completion.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    request = _completing(body)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if limit is not None:
        request.max_tokens = limit
    request.chat.messages.extend(_message(index, message) for index, message in enumerate(body.messages))
    # An empty list of messages is the validator's to refuse, but it must be a chat.
    request.chat.SetInParent()
    if body.logprobs:
        request.top_logprobs = body.top_logprobs or 0
    elif body.top_logprobs:
        raise invalid("top_logprobs", "needs logprobs: true")
    _format(request, body.response_format)
    add_tools(request, [tool.function for tool in body.tools or ()], tool_choice(body.tool_choice))
    return request


def completion_requests(body: bodies.CompletionBody) -> list[api.GenerateRequest]:
    """A request for each prompt.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    prompts: Sequence[Any] = [body.prompt]
    if isinstance(body.prompt, list) and not (body.prompt and isinstance(body.prompt[0], int)):
        prompts = body.prompt
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise invalid("prompt", f"has {len(prompts)} prompts; 1 to {MAX_PROMPTS} are allowed")
    requests = []
    for prompt in prompts:
        request = _completing(body)
        if isinstance(prompt, str):
            request.prompt = prompt
        else:
            request.token_ids.ids.extend(prompt)
        # This API's own default, which its clients count on.
        request.max_tokens = 16 if body.max_tokens is None else body.max_tokens
        if body.logprobs is not None:
            request.top_logprobs = body.logprobs
        requests.append(request)
    return requests


def response_request(body: bodies.ResponsesBody) -> api.GenerateRequest:
    """A request for a response.

    Raises:
        ServiceError: INVALID_FIELD.
    """
    request = _sampled(body)
    if body.max_output_tokens is not None:
        request.max_tokens = body.max_output_tokens
    if body.instructions:
        request.chat.messages.add(role=api.ROLE_SYSTEM, content=body.instructions)
    items = [bodies.InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    for item in items:
        match item:
            case bodies.InputMessage():
                request.chat.messages.add(role=ROLES[item.role], content=_text(item.content))
            case bodies.InputCall():
                call = api.ToolCall(id=item.call_id, name=item.name, arguments_json=item.arguments)
                request.chat.messages.add(role=api.ROLE_ASSISTANT, tool_calls=[call])
            case bodies.InputResult():
                request.chat.messages.add(role=api.ROLE_TOOL, content=item.output, tool_call_id=item.call_id)
    request.chat.SetInParent()
    _format(request, body.text.format if body.text else None)
    add_tools(request, body.tools or (), tool_choice(body.tool_choice))
    return request


def tool_choice(choice: Any) -> ToolChoice:
    """The choice of either API as one word."""
    if isinstance(choice, bodies.ChosenTool):
        return f"={choice.function.name}"
    return f"={choice.name}" if isinstance(choice, bodies.FlatChosenTool) else choice


def add_tools(request: api.GenerateRequest, tools: Sequence[bodies.Function], choice: ToolChoice) -> None:
    """Tell the model of the tools; if it must call one, constrain the answer to a call."""
    wanted = choice[1:] if choice and choice.startswith("=") else None
    if (wanted or choice == "required") and not tools:
        raise invalid("tool_choice", "asks for a call, but there are no tools")
    if wanted and wanted not in [tool.name for tool in tools]:
        raise invalid("tool_choice", f"{wanted!r} is not among the tools")
    if choice == "none":
        return
    for tool in tools:
        parameters = json.dumps(tool.parameters) if tool.parameters else ""
        request.chat.tools.add(name=tool.name, description=tool.description or "", parameters_json=parameters)
    if wanted or choice == "required":
        if request.HasField("response_format"):
            raise invalid("tool_choice", "asks for a call, and response_format for something else")
        callable_tools = [tool for tool in tools if wanted in (None, tool.name)]
        schemas = [call_schema(tool) for tool in callable_tools]
        request.response_format.json_schema = json.dumps(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})


def call_schema(tool: bodies.Function) -> Mapping[str, Any]:
    """JSON Schema of one call of a tool."""
    parameters = tool.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    properties = {"name": {"const": tool.name}, "arguments": parameters}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def invalid(field: str, description: str) -> ServiceError:
    return ServiceError(Reason.INVALID_FIELD, violations=(FieldViolation(field, description),))


def _sampled(body: bodies.Sampled) -> api.GenerateRequest:
    request = api.GenerateRequest(model=body.model)
    for name in _PLAIN:
        if (value := getattr(body, name, None)) is not None:
            setattr(request.sampling, name, value)
    if body.service_tier == "flex":
        request.priority_class = api.PRIORITY_CLASS_SHEDDABLE
    request.stop.token_ids.extend(body.stop_token_ids or ())
    request.stop.min_tokens = body.min_tokens or 0
    request.stop.ignore_end_of_text = bool(body.ignore_eos)
    return request


def _completing(body: bodies.Completing) -> api.GenerateRequest:
    request = _sampled(body)
    if body.n is not None:
        request.num_choices = body.n
    if body.seed is not None:
        # Clients use negative seeds too: what counts is that equal seeds are equal.
        request.sampling.seed = body.seed % 2**64
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    request.stop.strings.extend(stops)
    for key, bias in (body.logit_bias or {}).items():
        if not key.isascii() or not key.isdigit() or int(key) >= 2**32:
            raise invalid(f"logit_bias[{key[:20]}]", "is not a token id")
        request.sampling.logit_bias[int(key)] = bias
    return request


def _message(index: int, message: bodies.Message) -> api.ChatMessage:
    if message.content is None and not message.tool_calls:
        raise invalid(f"messages[{index}].content", "is missing")
    calls = [
        api.ToolCall(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
        for call in message.tool_calls or ()
    ]
    return api.ChatMessage(
        role=ROLES[message.role],
        content=_text(message.content or ""),
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
    )


def _text(content: str | list[bodies.TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _format(request: api.GenerateRequest, wanted: Any) -> None:
    match wanted:
        case bodies.JsonObjectFormat():
            request.response_format.json_schema = '{"type": "object"}'
        case bodies.JsonSchemaFormat():
            request.response_format.json_schema = json.dumps(wanted.json_schema.schema_)
        case bodies.FlatJsonSchemaFormat():
            request.response_format.json_schema = json.dumps(wanted.schema_)
