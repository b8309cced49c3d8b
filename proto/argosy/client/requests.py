"""Requests from what a program has at hand: messages as text, fields as keywords. Knows the public messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from argosy.v1 import inference_pb2 as api

_SAMPLING = frozenset(field.name for field in api.Sampling.DESCRIPTOR.fields)
_ROLES = {
    "system": api.ROLE_SYSTEM,
    "user": api.ROLE_USER,
    "assistant": api.ROLE_ASSISTANT,
    "tool": api.ROLE_TOOL,
}

Messages = str | Iterable[api.ChatMessage | Mapping[str, str]]
"""What a user says, or a conversation: messages, or mappings with `role` and `content`."""


def chat_request(model: str, messages: Messages, **fields: Any) -> api.GenerateRequest:
    """A request to go on with a conversation.

    Args:
        fields: of `GenerateRequest` (`max_tokens`, `idempotency_key`, …) or of its `sampling` (`temperature`, …).

    Raises:
        ValueError: there is no such field or role.
    """
    sampling = {name: fields.pop(name) for name in _SAMPLING & fields.keys()}
    chat = api.Chat(messages=map(_message, [{"role": "user", "content": messages}] if _is_text(messages) else messages))
    request = api.GenerateRequest(model=model, chat=chat, **fields)
    request.sampling.MergeFrom(api.Sampling(**sampling))
    return request


def _is_text(messages: Messages) -> bool:
    return isinstance(messages, str)


def _message(message: Any) -> api.ChatMessage:
    if isinstance(message, api.ChatMessage):
        return message
    role = message["role"]
    if role not in _ROLES:
        raise ValueError(f"role {role!r} is not one of {', '.join(_ROLES)}")
    return api.ChatMessage(role=_ROLES[role], content=message["content"])
