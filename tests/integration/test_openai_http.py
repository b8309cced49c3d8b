"""The HTTP door, asked by OpenAI's own client: answers, streams, tools, errors, and the ledger behind it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from cluster.router.tokenizer import ModelTokenizer
from tests.support.fake_replica import FakeReplica, hashed_tokens, scripted_tokens
from tests.support.guarded_world import GuardedWorld, guarded_world
from tests.support.router_world import MODEL, run_async

pytestmark = pytest.mark.model

END = 2
"""The model's end token."""
ASK: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


@asynccontextmanager
async def door(
    checkpoint: Path, directory: Path, *replicas: FakeReplica, mode: str = "anonymous"
) -> AsyncIterator[tuple[GuardedWorld, str, Any]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    router = {"listen": "127.0.0.1:0", "http_listen": f"127.0.0.1:{port}", "drain_seconds": 5, "max_message": "64KiB"}
    async with guarded_world(checkpoint, directory, *replicas, mode=mode, router=router) as world:
        url = f"http://127.0.0.1:{port}"
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="anonymous", max_retries=0, timeout=30) as client:
            yield world, url, client


def says(checkpoint: Path, *texts: str, step_seconds: float = 0.002) -> FakeReplica:
    tokenizer = ModelTokenizer.load(checkpoint)
    scripts = [[*tokenizer.encode(text), END] for text in texts]
    return FakeReplica(scripted_tokens(*scripts), step_seconds=step_seconds)


async def refusal(client: Any, kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    """Ask until it is refused so."""
    async with asyncio.timeout(10):
        while True:
            try:
                await client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1)
            except kind as error:
                return error
            await asyncio.sleep(0.05)


async def in_pieces(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


@run_async
async def test_a_chat_is_the_same_whole_and_streamed(smollm2_dir: Path, tmp_path: Path) -> None:
    replica = says(smollm2_dir, "Hello 🎉 you.", "Bonjour.")
    async with door(smollm2_dir, tmp_path, replica) as (_, _, client):
        whole = await client.chat.completions.create(model=MODEL, messages=ASK, n=2, seed=-5, temperature=0.5)
        assert [choice.message.content for choice in whole.choices] == ["Hello 🎉 you.", "Bonjour."]
        assert [choice.finish_reason for choice in whole.choices] == ["stop", "stop"]
        assert whole.usage is not None
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert replica.submits[0].sampling.seed == 2**64 - 5

        options: Any = {"include_usage": True}
        pieces = await in_pieces(
            await client.chat.completions.create(
                model=MODEL, messages=ASK, n=2, stream=True, stream_options=options, max_completion_tokens=50
            )
        )
        assert len({piece.id for piece in pieces}) == 1
        for index, choice in enumerate(whole.choices):
            mine = [piece.choices[0] for piece in pieces if piece.choices and piece.choices[0].index == index]
            assert mine[0].delta.role == "assistant"
            assert "".join(part.delta.content or "" for part in mine) == choice.message.content
            assert [part.finish_reason for part in mine if part.finish_reason] == ["stop"]
        assert pieces[-1].usage == whole.usage
        assert not pieces[-1].choices


@run_async
async def test_a_completion_of_several_prompts(smollm2_dir: Path, tmp_path: Path) -> None:
    async with door(smollm2_dir, tmp_path, says(smollm2_dir, "one two three four")) as (_, _, client):
        prompts = ["a", "b c"]
        whole = await client.completions.create(model=MODEL, prompt=prompts, max_tokens=3, n=2, logprobs=0)
        assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
        assert {choice.finish_reason for choice in whole.choices} == {"length"}
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12
        streamed = await client.completions.create(model=MODEL, prompt=prompts, max_tokens=3, n=2, stream=True)
        texts = dict.fromkeys(range(4), "")
        async for piece in streamed:
            texts[piece.choices[0].index] += piece.choices[0].text
        assert list(texts.values()) == [choice.text for choice in whole.choices]
        tokens = await client.completions.create(model=MODEL, prompt=[[1, 2, 3]])
        assert tokens.usage is not None
        assert tokens.usage.prompt_tokens == 3


@run_async
async def test_calls_of_tools(smollm2_dir: Path, tmp_path: Path) -> None:
    replica = says(smollm2_dir, f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>")
    tools: Any = [WEATHER]
    async with door(smollm2_dir, tmp_path, replica) as (_, _, client):
        whole = (await client.chat.completions.create(model=MODEL, messages=ASK, tools=tools)).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.content == "Let me see.\n"
        calls: Any = whole.message.tool_calls
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("get_weather", '{"city": "Paris"}')
        ] * 2
        assert len({call.id for call in calls}) == 2
        pieces = await in_pieces(
            await client.chat.completions.create(model=MODEL, messages=ASK, tools=tools, stream=True)
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "Let me see.\n"
        streamed = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or ()]
        assert [(call.index, call.function.arguments) for call in streamed] == [
            (0, '{"city": "Paris"}'),
            (1, '{"city": "Paris"}'),
        ]
        answered: Any = [
            *ASK,
            whole.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": calls[0].id, "content": "12 degrees"},
        ]
        await client.chat.completions.create(model=MODEL, messages=answered, tools=tools)
        prompt = ModelTokenizer.load(smollm2_dir).decoder([]).push(list(replica.submits[-1].prompt_token_ids))
        assert "<tool_response>\n12 degrees" in prompt


@run_async
async def test_a_call_can_be_demanded(smollm2_dir: Path, tmp_path: Path) -> None:
    replica = says(smollm2_dir, CALL)
    tools: Any = [WEATHER]
    async with door(smollm2_dir, tmp_path, replica) as (_, _, client):
        named: Any = {"type": "function", "function": {"name": "get_weather"}}
        for choice in ("required", named):
            answer = await client.chat.completions.create(
                model=MODEL, messages=ASK, tools=tools, tool_choice=choice, stream=False
            )
            assert answer.choices[0].message.tool_calls is not None
            assert answer.choices[0].message.content is None
            schema = json.loads(replica.submits[-1].grammar.json_schema)
            assert schema["properties"]["name"] == {"const": "get_weather"}
            assert schema["properties"]["arguments"]["required"] == ["city"]
        none = await client.chat.completions.create(model=MODEL, messages=ASK, tools=tools, tool_choice="none")
        assert none.choices[0].message.content == CALL
        assert not replica.submits[-1].HasField("grammar")
        other: Any = {"type": "function", "function": {"name": "other"}}
        with pytest.raises(openai.BadRequestError, match="'other' is not among the tools"):
            await client.chat.completions.create(model=MODEL, messages=ASK, tools=tools, tool_choice=other)


@run_async
async def test_responses(smollm2_dir: Path, tmp_path: Path) -> None:
    replica = says(smollm2_dir, f"Let me see. <tool_call>{CALL}</tool_call>")
    tool: Any = {"type": "function", **WEATHER["function"], "strict": True}
    async with door(smollm2_dir, tmp_path, replica) as (_, _, client):
        plain = await client.responses.create(model=MODEL, input="Hello", instructions="Be brief.")
        assert plain.output_text.startswith("Let me see. <tool_call>")
        whole = await client.responses.create(model=MODEL, input=ASK, tools=[tool])
        message, call = whole.output
        assert (message.type, call.type) == ("message", "function_call")
        assert call.arguments == '{"city": "Paris"}'
        events = await in_pieces(await client.responses.create(model=MODEL, input=ASK, tools=[tool], stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Let me see. "
        assert events[0].type == "response.created"
        assert events[-1].type == "response.completed"
        assert [item.type for item in events[-1].response.output] == ["message", "function_call"]
        follow_up: Any = [
            *ASK,
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"},
        ]
        cut = await client.responses.create(model=MODEL, input=follow_up, tools=[tool], max_output_tokens=2)
        assert cut.status == "incomplete"
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            await client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")


@run_async
async def test_structured_output_is_passed_on(smollm2_dir: Path, tmp_path: Path) -> None:
    replica = says(smollm2_dir, '{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    async with door(smollm2_dir, tmp_path, replica) as (_, _, client):
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        await client.chat.completions.create(model=MODEL, messages=ASK, response_format=wanted)
        assert json.loads(replica.submits[-1].grammar.json_schema) == schema
        any_object: Any = {"type": "json_object"}
        await client.chat.completions.create(model=MODEL, messages=ASK, response_format=any_object)
        assert json.loads(replica.submits[-1].grammar.json_schema) == {"type": "object"}
        broken: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=ASK, response_format=broken)
        assert caught.value.param is not None
        assert caught.value.param.startswith("response_format")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, ""),
    ({"logit_bias": {"many": 1}}, "logit_bias[many]"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias[99999999]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": []}, "functions"),
    ({"model": None}, "model"),
]


@run_async
async def test_bad_input_names_its_field(smollm2_dir: Path, tmp_path: Path) -> None:
    replica = says(smollm2_dir, "fine")
    async with door(smollm2_dir, tmp_path, replica) as (_, url, _), aiohttp.ClientSession() as session:
        for change, param in BAD:
            body = json.dumps({"model": MODEL, "messages": ASK, **change})
            async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                told = await response.json()
            assert response.status == 400, (change, told)
            assert told["error"]["type"] == "invalid_request_error"
            assert (told["error"]["param"] or "").startswith(param), (change, told)
        for path, data, status in (
            ("/v1/chat/completions", "{", 400),
            ("/v1/chat/completions", "[]", 400),
            ("/v1/chat/completions", "[" * 50_000, 400),
            ("/v1/chat/completions", json.dumps({"model": MODEL, "messages": ASK, "user": "x" * 70_000}), 413),
            ("/v1/completions", json.dumps({"model": MODEL, "prompt": []}), 400),
            ("/v1/completions", json.dumps({"model": MODEL, "prompt": "x", "echo": True}), 400),
            ("/v1/models", "", 501),
            ("/v1/nothing", "", 404),
        ):
            async with session.post(url + path, data=data) as response:
                assert response.status == status, (path, data[:80], await response.text())
                assert (await response.json())["error"]["message"]
        assert not replica.submits


@run_async
async def test_models_and_health(smollm2_dir: Path, tmp_path: Path) -> None:
    async with door(smollm2_dir, tmp_path, says(smollm2_dir, "x")) as (_, url, client):
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError, match=f"known models: {MODEL}"):
            await client.chat.completions.create(model="gpt-x", messages=ASK)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as response:
            assert response.status == 200


@run_async
async def test_identity_limits_and_ledger_are_those_of_grpc(smollm2_dir: Path, tmp_path: Path) -> None:
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.01)
    async with door(smollm2_dir, tmp_path, fake, mode="required") as (world, _, client):
        for key in ("anonymous", "argosy_nonsense"):
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key=key).models.list()
        credentials = await world.tenant("acme", limits={"requests_per_minute": 3})
        key = credentials[0][1].removeprefix("Bearer ")
        mine = client.with_options(api_key=key)
        raw = await mine.chat.completions.with_raw_response.create(
            model=MODEL, messages=ASK, max_tokens=7, extra_headers={"Idempotency-Key": "once"}
        )
        assert raw.headers["x-ratelimit-remaining-requests"] == "2"
        record = await world.record(raw.headers["x-request-id"], credentials)
        assert (record.tenant, record.completion_tokens) == ("acme", 7)
        with pytest.raises(openai.ConflictError):
            await mine.chat.completions.create(
                model=MODEL, messages=ASK, max_tokens=7, extra_headers={"Idempotency-Key": "once"}
            )
        stream = await mine.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2000, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await world.until_settled()
        endings = [tuple(row) for row in await world.query("SELECT ending, completion_tokens FROM requests")]
        assert ("complete", 7) in endings
        assert [0 < tokens < 2000 for ending, tokens in endings if ending == "cancelled"] == [True]
        error = await refusal(mine, openai.RateLimitError)
        assert int(error.response.headers["Retry-After"]) >= 1


@run_async
async def test_a_stream_outlives_its_replica(smollm2_dir: Path, tmp_path: Path) -> None:
    tokens = hashed_tokens(range(1000, 20000))
    replicas = [FakeReplica(tokens, step_seconds=0.01) for _ in range(2)]
    async with door(smollm2_dir, tmp_path, *replicas) as (_, _, client):
        asked: Any = {"model": MODEL, "messages": ASK, "max_tokens": 60, "seed": 7}
        expected = (await client.chat.completions.create(**asked)).choices[0].message.content
        text, killed = "", False
        async for piece in await client.chat.completions.create(**asked, stream=True):
            text += piece.choices[0].delta.content or ""
            if len(text) > 40 and not killed:
                killed = True
                await next(replica for replica in replicas if replica.submits[1:] or replica.num_streams).kill()
        assert killed
        assert text == expected


@run_async
async def test_draining_is_said_to_http_clients_too(smollm2_dir: Path, tmp_path: Path) -> None:
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.02)
    async with door(smollm2_dir, tmp_path, fake) as (world, _, client):
        stream = await client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=60, stream=True)
        reading = asyncio.create_task(in_pieces(stream))
        await asyncio.sleep(0.1)
        world.stops[0].set()
        error = await refusal(client, openai.InternalServerError)
        assert error.status_code == 503
        assert "Retry-After" in error.response.headers
        assert (await reading)[-1].choices[0].finish_reason == "length"
