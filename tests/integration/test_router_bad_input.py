"""Every bad request is refused through a real channel with its code, its reason and the name of the field."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from argosy.v1 import inference_pb2 as api
from argosy.v1 import models_pb2
from cluster import rpc
from cluster.errors import Reason, ServiceError
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.router_world import MODEL, World, request, router_world

pytestmark = pytest.mark.model

NAN, INFINITY = float("nan"), float("inf")
CONTEXT, MAX_TOKENS, VOCABULARY = 512, 256, 49152
USER = api.ChatMessage(role=api.ROLE_USER, content="hi")

SLOW_TO_COMPILE = '{"type": "integer", "multipleOf": 99999989}'

Ask = Callable[[Any], ServiceError]


@pytest.fixture(scope="module")
def world(smollm2_dir: Path) -> Iterator[tuple[World, asyncio.AbstractEventLoop]]:
    """One router for the whole table, on a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    manager = router_world(
        smollm2_dir,
        FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.001),
        router={"max_tokens": MAX_TOKENS, "max_message": "1MiB"},
        model={"context_length": CONTEXT},
    )
    try:
        yield asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop).result(30), loop
        asyncio.run_coroutine_threadsafe(manager.__aexit__(None, None, None), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def ask(world: tuple[World, asyncio.AbstractEventLoop]) -> Ask:
    """Make a call that must fail; returns what the client was told."""

    async def call(message: Any) -> ServiceError:
        is_generate = isinstance(message, api.GenerateRequest)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (world[0].generate(message) if is_generate else world[0].models.GetModel(message, timeout=20))
        return rpc.to_service_error(caught.value)

    return lambda message: asyncio.run_coroutine_threadsafe(call(message), world[1]).result(30)


def case(field: str, text: str, **fields: Any) -> Any:
    name = ",".join(f"{key}={str(value)[:30]!r}" for key, value in fields.items()) or "empty"
    return pytest.param(fields, field, text, id=f"{field}:{name}".replace("\n", " "))


BAD_FIELDS = [
    case("prompt", "empty", prompt=""),
    case("prompt", "511", prompt="word " * 600),
    case("prompt", "511", prompt="a b" * 100_000),
    case("token_ids.ids", "empty", token_ids={"ids": []}),
    case("token_ids.ids[1]", "49151", token_ids={"ids": [5, VOCABULARY]}),
    case("token_ids.ids[0]", "4294967295", token_ids={"ids": [2**32 - 1] * 10}),
    case("token_ids", "512 tokens", token_ids={"ids": [5] * CONTEXT}),
    case("chat.messages", "empty", chat={}),
    case("chat.messages[0].role", "ROLE_USER", chat=api.Chat(messages=[api.ChatMessage(content="hi")])),
    case("chat.messages[1].role", "ROLE_USER", chat=api.Chat(messages=[USER, api.ChatMessage(role=77)])),  # type: ignore[arg-type]
    case("max_tokens", "between 1 and 256", max_tokens=0),
    case("max_tokens", "between 1 and 256", max_tokens=10**9),
    case("num_choices", "between 1 and 16", num_choices=0),
    case("num_choices", "between 1 and 16", num_choices=17),
    case("top_logprobs", "between 0 and 20", top_logprobs=21),
    case("priority_class", "9", priority_class=9),
    *(
        case(f"sampling.{name}", "not", sampling={name: value})
        for name, values in {
            "temperature": (-1.0, 2.1, NAN, INFINITY, -INFINITY),
            "top_p": (0.0, -0.1, 1.1, NAN),
            "min_p": (-0.1, 1.1, NAN),
            "repetition_penalty": (0.0, -1.0, 2.5, NAN, INFINITY),
            "presence_penalty": (-2.1, 2.1, NAN),
            "frequency_penalty": (-2.1, 2.1, NAN),
        }.items()
        for value in values
    ),
    case("sampling.logit_bias[7]", "between -100 and 100", sampling={"logit_bias": {7: 101.0}}),
    case("sampling.logit_bias[7]", "between -100 and 100", sampling={"logit_bias": {7: NAN}}),
    case("sampling.logit_bias[49152]", "49151", sampling={"logit_bias": {VOCABULARY: 1.0}}),
    case("sampling.logit_bias", "1024", sampling={"logit_bias": dict.fromkeys(range(1025), 1.0)}),
    case("stop.strings", "16", stop={"strings": ["a"] * 17}),
    case("stop.strings[1]", "1 to 256", stop={"strings": ["a", ""]}),
    case("stop.strings[0]", "1 to 256", stop={"strings": ["a" * 257]}),
    case("stop.token_ids", "64", stop={"token_ids": [1] * 65}),
    case("stop.token_ids[0]", "49151", stop={"token_ids": [VOCABULARY]}),
    case("stop.min_tokens", "max_tokens", stop={"min_tokens": 11}, max_tokens=10),
    case("stop.min_tokens", "max_tokens", stop={"min_tokens": 2**32 - 1}),
    case("response_format", "json_schema, regex or grammar", response_format={}),
    case("response_format.regex", "0 bytes", response_format={"regex": ""}),
    case("response_format.regex", "65536", response_format={"regex": "é" * 32_769}),
    case("response_format.regex", "unclosed group", response_format={"regex": "(a"}),
    case("response_format.grammar", "missing", response_format={"grammar": "start: missing"}),
    case("response_format.grammar", "no answer", response_format={"grammar": "start: start"}),
    case("response_format.json_schema", "not valid JSON", response_format={"json_schema": "{"}),
    case("response_format.json_schema", "an object", response_format={"json_schema": "[]"}),
    case("response_format.json_schema", "nope", response_format={"json_schema": '{"type":"nope"}'}),
    case("response_format.json_schema", "not", response_format={"json_schema": '{"not":{}}'}),
    case("response_format.json_schema", "127.0.0.1", response_format={"json_schema": '{"$ref":"http://127.0.0.1/x"}'}),
    case("response_format.json_schema", "recursion", response_format={"json_schema": '{"items":' * 5000}),
    case("response_format.json_schema", "costly", response_format={"json_schema": SLOW_TO_COMPILE}),
    *(
        case(f"stop.{name}", "response_format", response_format={"regex": "a"}, stop={name: value})
        for name, value in {"strings": ["x"], "token_ids": [7], "min_tokens": 2, "ignore_end_of_text": True}.items()
    ),
]


@pytest.mark.parametrize(("fields", "field", "text"), BAD_FIELDS)
def test_a_bad_field_is_named(ask: Ask, fields: dict[str, Any], field: str, text: str) -> None:
    error = ask(request(**fields))
    assert error.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in error.violations] == [field]
    assert text in error.violations[0].description


def test_every_bad_field_is_named_at_once(ask: Ask) -> None:
    error = ask(request(prompt="", max_tokens=0, sampling={"temperature": -1.0}, stop={"strings": [""]}))
    assert {violation.field for violation in error.violations} == {
        "prompt",
        "max_tokens",
        "sampling.temperature",
        "stop.strings[0]",
    }


def test_a_request_without_input_says_what_to_set(ask: Ask) -> None:
    error = ask(api.GenerateRequest(model=MODEL))
    assert [violation.field for violation in error.violations] == ["input"]
    assert "prompt, token_ids or chat" in error.violations[0].description


@pytest.mark.parametrize("message", [request(model="nobody"), models_pb2.GetModelRequest(model="nobody")])
def test_an_unknown_model_names_the_known_ones(ask: Ask, message: Any) -> None:
    error = ask(message)
    assert error.reason is Reason.UNKNOWN_MODEL
    assert "'nobody'" in error.detail
    assert MODEL in error.detail


def test_a_model_must_be_named(ask: Ask) -> None:
    assert ask(models_pb2.GetModelRequest()).violations[0].field == "model"
    assert ask(api.GenerateRequest(prompt="x")).reason is Reason.UNKNOWN_MODEL


def test_what_is_said_about_a_format_is_one_short_line(ask: Ask) -> None:
    description = ask(request(response_format={"regex": "(\n" * 2000})).violations[0].description
    assert description.isprintable()
    assert len(description) <= 240


def test_an_enormous_message_is_refused_with_its_limit(ask: Ask) -> None:
    error = ask(request(prompt="a" * 1_500_000))
    assert error.reason is Reason.REQUEST_TOO_LARGE
    assert "at most 1048576" in error.detail


def test_after_all_that_the_router_still_serves(world: tuple[World, asyncio.AbstractEventLoop]) -> None:
    call = world[0].generate(request(max_tokens=3))
    assert len(asyncio.run_coroutine_threadsafe(call, world[1]).result(30).token_ids()) == 3
    assert world[0].ledger.open_rows == {}
