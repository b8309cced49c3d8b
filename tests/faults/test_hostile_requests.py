"""Thousands of hostile requests beside honest streams: each is refused by its code, honest answers stay exact.

Through a real channel, a real router and a real engine with a real rank (a tiny random model). Whoever is refused gets
INVALID_ARGUMENT or RESOURCE_EXHAUSTED, or the code that names what does not exist; no process ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argosy.internal.v1 import control_pb2
from argosy.v1 import inference_pb2 as api
from cluster.ids import ModelName, ReplicaId
from tests.integration.test_router_engine import Listing
from tests.support.replicas import Replica, replica_spec, running_replica
from tests.support.router_world import MODEL, World, request, router_world
from tests.support.tiny_llama import save_tiny

pytestmark = pytest.mark.model

VOCABULARY, CONTEXT = 49152, 256
ANSWERED = "OK"
REFUSALS = {
    "INVALID_ARGUMENT",
    "RESOURCE_EXHAUSTED",
    "NOT_FOUND",  # a model that is not served
    "FAILED_PRECONDITION",  # an answer to go on with that never was
    "ALREADY_EXISTS",  # a name that an earlier case used
}

sizes = st.sampled_from([0, 1, 2, 5, 16, 17, 20, 21, 64, 256, 257, 10**6, 2**31 - 1, 2**31, 2**32 - 1])
floats = st.floats(width=32) | st.sampled_from([-0.0, 0.0, 1e-38, 0.5, 1.0, 2.0, 2.0000002, 3e38])
token_ids = st.sampled_from([0, 1, 7, VOCABULARY - 1, VOCABULARY, 2**31, 2**32 - 1])
texts = st.text(max_size=60) | st.sampled_from(
    ["", "\0", "<|im_start|>", "<|im_end|>" * 9, "a" * 5000, "{{ 7 * 7 }}", "\u202e"]
)
formats = st.one_of(
    st.fixed_dictionaries({"regex": texts | st.sampled_from(["(", "(a{9999}){9999}", "(a|b)*c", "[^\\s\\S]"])}),
    st.fixed_dictionaries({"json_schema": texts | st.sampled_from(["{}", "{", '{"type":"nope"}', '{"$ref":"#"}'])}),
    st.fixed_dictionaries({"grammar": texts | st.sampled_from(["start: start", 'start: "a"', "start: missing"])}),
    st.just({}),
)
messages = st.lists(
    st.builds(api.ChatMessage, role=st.integers(-(2**31), 2**31 - 1), content=texts, tool_call_id=texts), max_size=3
)
inputs = st.one_of(
    st.fixed_dictionaries({"prompt": texts}),
    st.fixed_dictionaries({"token_ids": st.fixed_dictionaries({"ids": st.lists(token_ids, max_size=300)})}),
    st.fixed_dictionaries({"chat": st.builds(api.Chat, messages=messages)}),
)
samplings = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"), floats
        ),
        "top_k": sizes,
        "seed": st.integers(0, 2**64 - 1),
        "logit_bias": st.dictionaries(token_ids, floats, max_size=5),
    },
)
stops = st.fixed_dictionaries(
    {},
    optional={
        "strings": st.lists(texts, max_size=18),
        "token_ids": st.lists(token_ids, max_size=66),
        "min_tokens": sizes,
        "ignore_end_of_text": st.booleans(),
    },
)
others = st.fixed_dictionaries(
    {},
    optional={
        "model": texts | st.just(MODEL),
        "max_tokens": sizes,
        "num_choices": sizes,
        "top_logprobs": sizes,
        "priority_class": st.integers(-(2**31), 2**31 - 1),
        "sampling": samplings,
        "stop": stops,
        "response_format": formats,
        "idempotency_key": texts,
        "resume": st.fixed_dictionaries({"token": st.binary(max_size=40), "checkpoint": st.binary(max_size=40)}),
    },
)


def as_bytes(fields: tuple[dict[str, Any], dict[str, Any]]) -> bytes:
    return request(**{**fields[0], **fields[1]}).SerializeToString()


hostile = st.tuples(inputs, others).map(as_bytes) | st.binary(max_size=80)
"""Whole messages, and bytes that are none."""


@asynccontextmanager
async def served(smollm2_dir: Path, directory: Path) -> AsyncIterator[tuple[World, Replica]]:
    """A router before an engine with one rank; its model has SmolLM2's vocabulary and is otherwise tiny and random."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    save_tiny(directory, **shape, num_attention_heads=2, num_key_value_heads=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / name, directory)
    spec = replica_spec(directory, num_blocks=128, context_length=CONTEXT, max_sequences=16, max_batch_tokens=128)
    spec = dataclasses.replace(spec, replica_id=ReplicaId(f"{MODEL}/0"), model=ModelName(MODEL))
    async with running_replica(spec) as replica:
        limits = {"max_tokens": 8, "default_deadline_seconds": 30}
        async with router_world(smollm2_dir, router=limits, model={"context_length": CONTEXT}) as world:
            world.directory.replicas = [Listing(replica)]
            await world.until_ready(1)
            yield world, replica


@pytest.fixture(scope="module")
def serving(
    smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[World, Replica, Callable[[Awaitable[Any]], Any]]]:
    """On a loop in a thread of its own, so that cases can be tried one by one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    manager = served(smollm2_dir, tmp_path_factory.mktemp("tiny"))

    def wait(awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, loop).result(120)

    try:
        yield *wait(manager.__aenter__()), wait
        wait(manager.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Honest:
    """Streams that go on all the while, each compared with what it said when nobody else was there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asks = [
            request(
                token_ids={"ids": range(5 + i, 40 + 9 * i)},
                max_tokens=8,
                num_choices=1 + i % 2,
                top_logprobs=0,
                sampling={"seed": i, "temperature": float(i % 2)},
                stop={"ignore_end_of_text": True},
            )
            for i in range(4)
        ]
        self._expected: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.compared = 0

    async def begin(self) -> None:
        self._expected = [await self._said(ask) for ask in self._asks]
        self._tasks = [asyncio.create_task(self._go_on(i)) for i in range(len(self._asks))]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result

    async def _go_on(self, index: int) -> None:
        while True:
            assert await self._said(self._asks[index]) == self._expected[index]
            self.compared += 1

    async def _said(self, ask: api.GenerateRequest) -> Any:
        reply = await self._world.generate(ask)
        logprobs = [
            [entry.logprob for delta in reply.deltas if delta.choice == choice for entry in delta.logprobs]
            for choice in range(ask.num_choices)
        ]
        return [reply.token_ids(choice) for choice in range(ask.num_choices)], logprobs


async def outcome(world: World, data: bytes) -> str:
    """Send the bytes as they are; the code that comes back. An answer is read to its end."""
    call = world.channel.unary_stream("/argosy.v1.InferenceService/Generate")(data, timeout=60)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return ANSWERED


def attack(serving: Any, cases: int) -> None:
    world, replica, wait = serving
    pids = [worker.pid for worker in replica.workers]
    honest, seen = Honest(world), Counter[str]()
    wait(honest.begin())

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(data=hostile)
    def each(data: bytes) -> None:
        code = wait(outcome(world, data))
        seen[code] += 1
        assert code in REFUSALS | {ANSWERED}

    each()
    wait(honest.end())
    assert seen.total() >= cases
    assert seen["INVALID_ARGUMENT"] >= cases // 4
    assert honest.compared >= 20
    assert [worker.pid for worker in replica.workers if worker.poll() is None] == pids
    assert wait(replica.status()).state == control_pb2.REPLICA_STATE_READY


def test_hostile_requests_harm_nobody(serving: Any) -> None:
    attack(serving, 150)


@pytest.mark.faults_long
@pytest.mark.timeout(1800)
def test_two_thousand_hostile_requests_harm_nobody(serving: Any) -> None:
    attack(serving, 2_000)
