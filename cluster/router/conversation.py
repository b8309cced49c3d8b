"""A chat and its tools as chat templates expect them, and what is wrong with them. Knows messages; no tokens.

Templates that know tools are given them as they are (the form that transformers passes: a list of JSON Schema
functions, calls with parsed arguments). For the others the tools are described in the system message, in the form that
the Hermes models made common: calls and results are JSON between `<tool_call>` and `<tool_response>` marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from argosy.v1 import inference_pb2 as api

ROLE_NAMES = {
    api.ROLE_SYSTEM: "system",
    api.ROLE_USER: "user",
    api.ROLE_ASSISTANT: "assistant",
    api.ROLE_TOOL: "tool",
}
MAX_TOOLS = 128
CALL_OPENS, CALL_CLOSES = "<tool_call>", "</tool_call>"
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_INSTRUCTIONS = (
    "You may call one or more of these functions. Their arguments are described by JSON Schema:\n<tools>\n{tools}\n"
    "</tools>\nTo call a function, write its name and arguments as a JSON object within marks, and nothing else:\n"
    f'{CALL_OPENS}\n{{{{"name": "the function", "arguments": {{{{}}}}}}}}\n{CALL_CLOSES}'
)

Message = Mapping[str, Any]


def problems(chat: api.Chat) -> Iterator[tuple[str, str]]:
    """What is wrong with a chat whatever the model is: field and description."""
    if not chat.messages:
        yield "chat.messages", "is empty"
    for index, message in enumerate(chat.messages):
        path = f"chat.messages[{index}]"
        if message.role not in ROLE_NAMES:
            known = "ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT or ROLE_TOOL"
            yield f"{path}.role", f"{message.role} is not a role; use {known}"
        if message.tool_calls and message.role != api.ROLE_ASSISTANT:
            yield f"{path}.tool_calls", "may only come with ROLE_ASSISTANT"
        if message.tool_call_id and message.role != api.ROLE_TOOL:
            yield f"{path}.tool_call_id", "may only come with ROLE_TOOL"
        for number, call in enumerate(message.tool_calls):
            if not isinstance(_parsed(call.arguments_json), dict):
                yield f"{path}.tool_calls[{number}].arguments_json", "is not a JSON object"
    yield from _tools(chat.tools)


def _tools(tools: Sequence[api.Tool]) -> Iterator[tuple[str, str]]:
    if len(tools) > MAX_TOOLS:
        yield "chat.tools", f"has {len(tools)} entries; at most {MAX_TOOLS}"
        return
    names: set[str] = set()
    for index, tool in enumerate(tools):
        path = f"chat.tools[{index}]"
        if not _TOOL_NAME.fullmatch(tool.name):
            yield f"{path}.name", "must be 1 to 64 letters, digits, '_', '-' or '.'"
        elif tool.name in names:
            yield f"{path}.name", f"{tool.name!r} is there twice"
        names.add(tool.name)
        if tool.parameters_json and not isinstance(_parsed(tool.parameters_json), dict):
            yield f"{path}.parameters_json", "is not a JSON object"


def _parsed(text: str) -> Any:
    """The value, None if it is not JSON. An absent text is an empty object."""
    try:
        return json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return None


def native(chat: api.Chat) -> tuple[list[Message], list[Message] | None]:
    """Messages and tools of a checked chat, for a template that knows tools."""
    return [_native(message) for message in chat.messages], [function(tool) for tool in chat.tools] or None


def described(chat: api.Chat) -> list[Message]:
    """Messages of a checked chat, for a template that knows no tools: they are told in words."""
    messages = [_described(message) for message in chat.messages]
    if not chat.tools:
        return messages
    lines = "\n".join(json.dumps(function(tool), ensure_ascii=False) for tool in chat.tools)
    told = _INSTRUCTIONS.format(tools=lines)
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": told}, *messages]
    return [{"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]


def function(tool: api.Tool) -> Message:
    """The JSON form of a tool."""
    parameters = _parsed(tool.parameters_json) or {"type": "object", "properties": {}}
    body = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": body}


def _native(message: api.ChatMessage) -> Message:
    entry: dict[str, Any] = {"role": ROLE_NAMES[message.role], "content": message.content}
    if message.tool_calls:
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _call(call)} for call in message.tool_calls
        ]
    if message.tool_call_id:
        entry["tool_call_id"] = message.tool_call_id
    return entry


def _described(message: api.ChatMessage) -> Message:
    if message.role == api.ROLE_TOOL:
        return {"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>"}
    marked = [
        f"{CALL_OPENS}\n{json.dumps(_call(call), ensure_ascii=False)}\n{CALL_CLOSES}" for call in message.tool_calls
    ]
    parts = [message.content, *marked] if message.content else marked or [""]
    return {"role": ROLE_NAMES[message.role], "content": "\n".join(parts)}


def _call(call: api.ToolCall) -> Message:
    return {"name": call.name, "arguments": _parsed(call.arguments_json)}
