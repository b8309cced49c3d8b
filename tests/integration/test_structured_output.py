"""Constrained answers through real router, engine and worker: whole, valid, the same when moved, no harm to others."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jsonschema
import pytest

from argosy.internal.v1 import control_pb2, replica_pb2
from argosy.v1 import inference_pb2 as api
from cluster import rpc
from cluster.errors import Reason, ServiceError
from cluster.ids import ModelName, ReplicaId
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.replicas import Replica, replica_spec, running_replica
from tests.support.router_stream import router_stream, sampling, spec_of
from tests.support.router_world import MODEL, Reply, World, request, router_world
from tests.support.schemas import SCHEMAS

pytestmark = pytest.mark.model

TRIED = ("person", "nested", "tool-call", "order", "matrix", "tuple", "uuid", "escapes", "optional", "any-of-objects")
STOP, LENGTH = api.FINISH_REASON_STOP, api.FINISH_REASON_LENGTH
END_TOKEN, SERVING = 2, 1
BOMBS = {
    "compile": {"json_schema": '{"type": "integer", "multipleOf": 99999989}'},
    "follow": {"grammar": 'start: e\ne: e e | "a" | "b" | "ab" | "aa"'},
    "states": {"regex": "(.*a.{50}|.*b.{60}|.*c.{70})*"},
}


class Listing(FakeReplica):
    """A real replica's entry in the fake directory."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(hashed_tokens([1]))
        self.replica = replica

    def entry(self) -> control_pb2.DirectoryEntry:
        spec, address = self.replica.spec, self.replica.addresses.service
        return control_pb2.DirectoryEntry(replica_id=spec.replica_id, model=MODEL, address=address, epoch=spec.epoch)


@dataclasses.dataclass
class Served:
    """A model that can be asked from the test's thread."""

    world: World
    replica: Replica
    run: Callable[[Coroutine[Any, Any, Any]], Any]

    def generate(self, **fields: Any) -> Reply:
        return self.run(self.world.generate(asked(**fields)))


def asked(task: str = "Invent one.", **fields: Any) -> api.GenerateRequest:
    message = api.ChatMessage(role=api.ROLE_USER, content=task)
    return request(**{"chat": api.Chat(messages=[message]), "max_tokens": 160, **fields})


def schema(name: str) -> dict[str, str]:
    return {"json_schema": json.dumps(SCHEMAS[name])}


@pytest.fixture(scope="module")
def served(smollm2_dir: Path) -> Iterator[Served]:
    @asynccontextmanager
    async def start() -> Any:
        async with AsyncExitStack() as stack:
            spec = replica_spec(smollm2_dir, num_blocks=256, context_length=512, max_sequences=8)
            spec = dataclasses.replace(spec, replica_id=ReplicaId(f"{MODEL}/0"), model=ModelName(MODEL))
            replica = await stack.enter_async_context(running_replica(spec))
            world = await stack.enter_async_context(router_world(smollm2_dir))
            world.directory.replicas = [Listing(replica)]
            await world.until_ready(1)
            yield world, replica

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)

    manager = start()
    try:
        world, replica = run(manager.__aenter__())
        yield Served(world, replica, run)
        run(manager.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_every_answer_to_a_schema_parses_and_validates(served: Served) -> None:
    async def ask() -> list[Reply]:
        calls = (
            served.world.generate(asked(response_format=schema(name), sampling={"temperature": 1.0, "seed": seed}))
            for seed, name in enumerate(TRIED)
        )
        return await asyncio.gather(*calls)

    for name, reply in zip(TRIED, served.run(ask()), strict=True):
        assert reply.finished.choices[0].reason == STOP, (name, reply.text())
        jsonschema.validate(json.loads(reply.text()), SCHEMAS[name])


def test_several_choices_follow_the_grammar_each_on_its_own(served: Served) -> None:
    reply = served.generate(
        response_format={"regex": "(red|green|blue), [a-z]{4}"}, num_choices=4, sampling={"temperature": 1.5, "seed": 3}
    )
    texts = [reply.text(choice) for choice in range(4)]
    assert all(re.fullmatch("(red|green|blue), [a-z]{4}", text) for text in texts), texts
    assert len(set(texts)) > 1
    assert [choice.reason for choice in reply.finished.choices] == [STOP] * 4


def test_a_grammar_derives_the_whole_answer(served: Served) -> None:
    grammar = 'start: sum\nsum: NUMBER | NUMBER " + " sum | "(" sum ")"\nNUMBER: /[1-9][0-9]?/'
    reply = served.generate(
        response_format={"grammar": grammar}, max_tokens=120, sampling={"temperature": 0.7, "seed": 1}
    )
    assert re.fullmatch(r"[0-9 +()]+", reply.text())
    if reply.finished.choices[0].reason == STOP:
        assert isinstance(eval(reply.text(), {"__builtins__": {}}), int)


def test_an_answer_that_is_cut_says_so(served: Served) -> None:
    reply = served.generate(response_format=schema("people"), max_tokens=4)
    assert reply.finished.choices[0].reason == LENGTH
    assert reply.finished.usage.completion_tokens == 4


def test_free_and_constrained_answers_do_not_disturb_each_other(served: Served) -> None:
    free = asked(max_tokens=16, sampling={"temperature": 0.8, "seed": 5})
    bound = asked(response_format=schema("flags"), max_tokens=16, sampling={"temperature": 0.8, "seed": 6})
    alone = [served.run(served.world.generate(ask)).token_ids() for ask in (free, bound)]

    async def together() -> list[Reply]:
        return await asyncio.gather(*(served.world.generate(ask) for ask in (free, bound, free, bound)))

    assert [reply.token_ids() for reply in served.run(together())] == alone * 2


def test_a_moved_answer_goes_on_as_if_nothing_had_happened(served: Served) -> None:
    grammar = replica_pb2.GrammarSpec(json_schema=json.dumps(SCHEMAS["verdict"]))
    prompt = list(range(100, 140))
    fields = {"grammar": grammar, "sampling": sampling(temperature=1.0, seed=9), "stop_token_ids": [END_TOKEN]}

    async def generate() -> tuple[list[int], list[list[int]]]:
        async with router_stream(served.replica.addresses.service) as stream:
            whole = (await stream.generate(spec_of(prompt, 120, **fields))).tokens[0]
            cuts = [
                (await stream.generate(spec_of(prompt, 120, emitted=whole[:cut], **fields))).tokens[0]
                for cut in (1, len(whole) // 2, len(whole) - 1)
            ]
            return whole, [whole[: -len(rest)] + rest for rest in cuts]

    whole, moved = served.run(generate())
    assert len(whole) > 10
    assert moved == [whole] * len(moved)


def test_tokens_that_the_grammar_does_not_allow_cannot_have_been_emitted(served: Served) -> None:
    async def generate() -> Any:
        async with router_stream(served.replica.addresses.service) as stream:
            grammar = replica_pb2.GrammarSpec(regex="a+")
            return await stream.generate(spec_of([5, 6], 9, emitted=[100, 101], grammar=grammar))

    reply = served.run(generate())
    assert reply.ends == {0: replica_pb2.END_REASON_REFUSED}
    assert "emitted" in reply.details[0]


def test_bombs_harm_nobody_else(served: Served) -> None:
    free = asked(max_tokens=16, sampling={"temperature": 0.8, "seed": 5})
    bound = asked(response_format=schema("tuple"), sampling={"temperature": 0.8, "seed": 6})

    async def explode(bomb: dict[str, str]) -> ServiceError | None:
        try:
            await served.world.generate(asked("aaaa", response_format=bomb, max_tokens=16))
        except grpc.aio.AioRpcError as error:
            return rpc.to_service_error(error)
        return None

    async def beside(bombs: list[dict[str, str]]) -> tuple[list[list[int]], list[ServiceError | None]]:
        replies = [asyncio.create_task(served.world.generate(ask)) for ask in (free, bound)]
        refusals = await asyncio.gather(*(explode(bomb) for bomb in bombs))
        return [reply.token_ids() for reply in await asyncio.gather(*replies)], refusals

    quiet, _ = served.run(beside([]))
    loud, refusals = served.run(beside([*BOMBS.values()]))
    assert loud == quiet
    assert refusals[0] is not None
    assert refusals[0].reason is Reason.INVALID_FIELD
    for error in refusals[1:]:
        assert error is None or (error.reason is Reason.REFUSED and "grammar" in error.detail), error
    assert served.run(served.world.health("argosy.v1.InferenceService")) == SERVING
