"""Tools and their calls on the way into a prompt: given to templates that know them, described to the others."""

from __future__ import annotations

import json

import pytest

from argosy.v1 import inference_pb2 as api
from cluster.router.chat_template import ChatTemplate
from cluster.router.conversation import described, native, problems

WEATHER = api.Tool(
    name="get_weather", description="Weather now", parameters_json='{"type": "object", "properties": {"city": {}}}'
)
CALL = api.ToolCall(id="call_1", name="get_weather", arguments_json='{"city": "Paris"}')
BROKEN = api.ToolCall(arguments_json="[")
TURNS = [
    api.ChatMessage(role=api.ROLE_USER, content="How is the weather in Paris?"),
    api.ChatMessage(role=api.ROLE_ASSISTANT, tool_calls=[CALL]),
    api.ChatMessage(role=api.ROLE_TOOL, content="12 degrees", tool_call_id="call_1"),
]
CHAT = api.Chat(messages=TURNS, tools=[WEATHER])


def test_a_template_that_knows_tools_gets_them_as_the_library_passes_them() -> None:
    template = ChatTemplate("{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}", {})
    assert template.knows_tools
    text = template.render(*native(CHAT))
    for part in (
        '"name": "get_weather"',
        '"arguments": {"city": "Paris"}',
        '"tool_call_id": "call_1"',
        '"parameters": {"type": "object"',
    ):
        assert part in text


def test_a_template_that_knows_none_is_told_in_words() -> None:
    assert not ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {}).knows_tools
    system, _, call, result = described(CHAT)
    assert system["role"] == "system"
    shown = system["content"].split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(shown)["function"]["name"] == "get_weather"
    assert call == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    }
    assert result == {"role": "user", "content": "<tool_response>\n12 degrees\n</tool_response>"}


def test_the_operators_system_message_stays_in_front() -> None:
    own = api.ChatMessage(role=api.ROLE_SYSTEM, content="Be brief.")
    first, second = described(api.Chat(messages=[own, TURNS[0]], tools=[WEATHER]))
    assert first["content"].startswith("Be brief.\n\n")
    assert second == {"role": "user", "content": TURNS[0].content}


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (api.Chat(), "chat.messages"),
        (api.Chat(messages=[api.ChatMessage(content="x")]), "chat.messages[0].role"),
        (api.Chat(messages=[api.ChatMessage(role=api.ROLE_USER, tool_calls=[CALL])]), "chat.messages[0].tool_calls"),
        (api.Chat(messages=[api.ChatMessage(role=api.ROLE_USER, tool_call_id="x")]), "chat.messages[0].tool_call_id"),
        (
            api.Chat(
                messages=[api.ChatMessage(role=api.ROLE_ASSISTANT, tool_calls=[api.ToolCall(arguments_json="[")])]
            ),
            "chat.messages[0].tool_calls[0].arguments_json",
        ),
        (api.Chat(messages=TURNS[:1], tools=[api.Tool(name="no spaces")]), "chat.tools[0].name"),
        (api.Chat(messages=TURNS[:1], tools=[WEATHER, WEATHER]), "chat.tools[1].name"),
        (
            api.Chat(messages=TURNS[:1], tools=[api.Tool(name="x", parameters_json="[]")]),
            "chat.tools[0].parameters_json",
        ),
        (api.Chat(messages=TURNS[:1], tools=[api.Tool(name=f"x{i}") for i in range(129)]), "chat.tools"),
    ],
)
def test_what_is_wrong_is_named(chat: api.Chat, field: str) -> None:
    assert [path for path, _ in problems(chat)] == [field]
