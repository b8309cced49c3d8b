"""A router's side of `ReplicaService`, as small as a test needs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from google.protobuf import duration_pb2

from argosy.internal.v1 import replica_pb2, replica_pb2_grpc
from cluster import rpc
from cluster.protocol import REPLICA_PROTOCOL_VERSION

GREEDY = replica_pb2.SamplingSpec(temperature=0.0, top_p=1.0, repetition_penalty=1.0)


def sampling(**fields: float) -> replica_pb2.SamplingSpec:
    """Greedy unless told otherwise."""
    spec = replica_pb2.SamplingSpec()
    spec.CopyFrom(GREEDY)
    for name, value in fields.items():
        setattr(spec, name, value)
    return spec


def spec_of(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    choices: int = 1,
    emitted: Sequence[int] = (),
    seconds: float = 120.0,
    **fields: object,
) -> replica_pb2.GenerationSpec:
    """A valid spec; `fields` override."""
    time_left = duration_pb2.Duration()
    time_left.FromNanoseconds(int(seconds * 1e9))
    values: dict = {
        "request_id": "req_test",
        "prompt_token_ids": prompt,
        "choices": [replica_pb2.ChoiceState(index=i, emitted_token_ids=emitted) for i in range(choices)],
        "max_tokens": max_tokens,
        "sampling": GREEDY,
        "time_left": time_left,
        "initial_credit": 100_000,
    }
    return replica_pb2.GenerationSpec(**{**values, **fields})


@dataclass
class Answer:
    """What came back for one request, choice by choice."""

    num_choices: int
    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    cached_prompt_tokens: int = 0
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, delta: replica_pb2.TokenDelta, first_index: int) -> None:
        tokens = self.tokens.setdefault(delta.choice, [])
        assert delta.choice not in self.ends, "a delta after the end"
        if delta.token_ids:
            assert delta.first_index == first_index + len(tokens), "tokens lost or repeated"
        tokens.extend(delta.token_ids)
        self.logprobs.setdefault(delta.choice, []).extend(entry.logprob for entry in delta.logprobs)
        self.cached_prompt_tokens += delta.cached_prompt_tokens
        if delta.end:
            self.ends[delta.choice] = delta.end
        if delta.detail:
            self.details.append(delta.detail)
        self.changed.set()

    @property
    def is_over(self) -> bool:
        return len(self.ends) == self.num_choices

    async def over(self) -> Answer:
        await self._until(lambda: self.is_over)
        return self

    async def has(self, count: int, choice: int = 0) -> Answer:
        """Until `count` tokens have come."""
        await self._until(lambda: len(self.tokens.get(choice, [])) >= count)
        return self

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert not self.ended, "the stream ended first"
            await self.changed.wait()
            self.changed.clear()


class RouterStream:
    """One open stream."""

    def __init__(self, call: object, welcome: replica_pb2.Welcome) -> None:
        self._call = call
        self._next_stream = 0
        self._one_at_a_time = asyncio.Lock()
        self.welcome = welcome
        self.answers: dict[int, tuple[Answer, int]] = {}
        self.reports: list[replica_pb2.StepReport] = []
        self.ended_with: Exception | None = None

    async def submit(self, spec: replica_pb2.GenerationSpec) -> tuple[int, Answer]:
        self._next_stream += 1
        stream_id = self._next_stream
        answer = Answer(max(1, len(spec.choices)))
        emitted = len(spec.choices[0].emitted_token_ids) if spec.choices else 0
        self.answers[stream_id] = (answer, emitted)
        submit = replica_pb2.Submit(stream_id=stream_id, spec=spec)
        await self._write(replica_pb2.ConnectRequest(submit=submit))
        return stream_id, answer

    async def generate(self, spec: replica_pb2.GenerationSpec) -> Answer:
        _, answer = await self.submit(spec)
        return await answer.over()

    async def cancel(self, stream_id: int) -> None:
        await self._write(replica_pb2.ConnectRequest(cancel=replica_pb2.Cancel(stream_id=stream_id)))

    async def credit(self, stream_id: int, tokens: int) -> None:
        credit = replica_pb2.Credit(stream_id=stream_id, tokens=tokens)
        await self._write(replica_pb2.ConnectRequest(credit=credit))

    async def _write(self, request: replica_pb2.ConnectRequest) -> None:
        async with self._one_at_a_time:  # a gRPC stream takes one write at a time
            await self._call.write(request)

    async def read(self) -> None:
        """Hand out deltas until the stream ends; then nobody may wait for more."""
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self.reports.append(response.report)
                for delta in response.report.deltas:
                    answer, first_index = self.answers[delta.stream_id]
                    answer.add(delta, first_index)
        except grpc.aio.AioRpcError as error:
            self.ended_with = error
        finally:
            self._end()

    def _end(self) -> None:
        for answer, _ in self.answers.values():
            answer.ended = True
            answer.changed.set()


@asynccontextmanager
async def router_stream(
    address: str, *, expected_epoch: int = 0, protocol_version: int = REPLICA_PROTOCOL_VERSION
) -> AsyncIterator[RouterStream]:
    """Connect as a router; on leaving, hang up."""
    async with rpc.channel(address) as channel:
        call = replica_pb2_grpc.ReplicaServiceStub(channel).Connect()
        hello = replica_pb2.Hello(
            router_id="router_test", expected_epoch=expected_epoch, protocol_version=protocol_version
        )
        await call.write(replica_pb2.ConnectRequest(hello=hello))
        first = await call.read()
        if not isinstance(first, replica_pb2.ConnectResponse):
            await call  # raises the status
        stream = RouterStream(call, first.welcome)
        reading = asyncio.create_task(stream.read())
        try:
            yield stream
        finally:
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
