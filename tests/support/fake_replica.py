"""A replica and a directory without a model: the real internal protocols over real gRPC, tokens from a function.

For tests of the router and for measuring it alone. A token depends on (prompt, seed, choice, index) only, as a real
replica's does, so an answer is the same wherever and however often it is continued. Faults are methods.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from argosy.internal.v1 import control_pb2, control_pb2_grpc, replica_pb2, replica_pb2_grpc
from cluster import rpc
from cluster.control.service import without_prefixes
from cluster.errors import Reason, ServiceError
from cluster.protocol import HEARTBEAT_SECONDS, REPLICA_PROTOCOL_VERSION

TokenFunction = Callable[[replica_pb2.GenerationSpec, int, int], int]
"""(spec, choice, index) to token id."""


def hashed_tokens(vocabulary: Sequence[int]) -> TokenFunction:
    """Tokens that look random and depend on nothing but what a real replica's depend on."""
    digests: dict[tuple[str, int], int] = {}

    def token(spec: replica_pb2.GenerationSpec, choice: int, index: int) -> int:
        key = (spec.request_id, choice)
        if key not in digests:
            material = repr((list(spec.prompt_token_ids), spec.sampling.seed, choice)).encode()
            digests[key] = int.from_bytes(hashlib.blake2b(material, digest_size=8).digest(), "little")
        # A multiplicative hash of the index: cheap enough to make thousands a second beside what is measured.
        return vocabulary[((digests[key] + index * 0x9E3779B97F4A7C15) % 2**64 >> 20) % len(vocabulary)]

    return token


def scripted_tokens(*scripts: Sequence[int]) -> TokenFunction:
    """Choice i says script i (the last one for those beyond), over and over."""

    def token(spec: replica_pb2.GenerationSpec, choice: int, index: int) -> int:
        script = scripts[min(choice, len(scripts) - 1)]
        return script[index % len(script)]

    return token


@dataclass(slots=True)
class _Choice:
    index: int
    emitted: int
    over: bool = False


@dataclass(slots=True, eq=False)
class _Stream:
    stream_id: int
    spec: replica_pb2.GenerationSpec
    choices: list[_Choice]
    credit: int
    deadline: float
    wait_steps: int


@dataclass(slots=True, eq=False)
class _Router:
    """One open `Connect`."""

    streams: dict[int, _Stream] = field(default_factory=dict)
    reports: asyncio.Queue[replica_pb2.ConnectResponse] = field(default_factory=asyncio.Queue)


class FakeReplica(replica_pb2_grpc.ReplicaServiceServicer):
    """Serves every stream one token a step for each choice."""

    def __init__(
        self,
        tokens: TokenFunction,
        *,
        model: str = "fake",
        replica_id: str = "fake/0",
        epoch: int = 1,
        step_seconds: float = 0.01,
        prefill_steps: int = 1,
        context_length: int = 8192,
        refuses: bool = False,
    ) -> None:
        self.tokens = tokens
        self.model = model
        self.replica_id = replica_id
        self.epoch = epoch
        self.step_seconds = step_seconds
        self.prefill_steps = prefill_steps
        self.context_length = context_length
        self.refuses = refuses
        """Ends every request with END_REASON_REFUSED."""
        self.most_emitted = 0
        """Tokens of its longest choice so far, those emitted elsewhere included."""
        self.address = ""
        self.advertised = ""
        """What the directory says instead: a proxy before it."""
        self.submits: list[replica_pb2.GenerationSpec] = []
        self.cancels: list[int] = []
        self.num_credits = 0
        self.num_tokens = 0
        self.is_frozen = False
        """Silent, connections open: a stopped process."""
        self.is_stalled = False
        """Heartbeats but no steps: a hung rank."""
        self._step = 0
        self._routers: set[_Router] = set()
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None

    @property
    def num_streams(self) -> int:
        return sum(len(router.streams) for router in self._routers)

    @property
    def is_alive(self) -> bool:
        return self._task is not None

    @property
    def num_routers(self) -> int:
        return len(self._routers)

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        """Serve; returns host:port."""
        self._server = rpc.server()
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(self, self._server)
        self.address = rpc.listen(self._server, listen, "fake replica")
        await self._server.start()
        self._task = asyncio.create_task(self._run())
        return self.address

    async def kill(self) -> None:
        """End at once, streams and listener: a killed process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            for router in self._routers:
                router.streams.clear()
            await self._server.stop(0)

    def give_up(self, detail: str = "draining") -> None:
        """End every stream with END_REASON_ERROR: a replica that drains."""
        for router in self._routers:
            deltas = [
                replica_pb2.TokenDelta(
                    stream_id=stream.stream_id,
                    choice=choice.index,
                    first_index=choice.emitted,
                    end=replica_pb2.END_REASON_ERROR,
                    detail=detail,
                )
                for stream in router.streams.values()
                for choice in stream.choices
                if not choice.over
            ]
            router.streams.clear()
            self._report(router, deltas)

    def entry(self) -> control_pb2.DirectoryEntry:
        """Itself, as a directory lists it."""
        return control_pb2.DirectoryEntry(
            replica_id=self.replica_id,
            model=self.model,
            address=self.advertised or self.address,
            epoch=self.epoch,
            load=self._load(),
        )

    async def Connect(self, requests: Any, context: Any) -> AsyncIterator[replica_pb2.ConnectResponse]:  # noqa: N802
        """The protocol of replica.proto."""
        hello = (await anext(aiter(requests))).hello
        if hello.protocol_version != REPLICA_PROTOCOL_VERSION:
            raise ServiceError(Reason.PROTOCOL_VERSION)
        if hello.expected_epoch not in (0, self.epoch):
            raise ServiceError(Reason.STALE_EPOCH)
        welcome = replica_pb2.Welcome(
            replica_id=self.replica_id,
            epoch=self.epoch,
            model=self.model,
            block_size=16,
            context_length=self.context_length,
            answers_probes=True,
        )
        welcome.heartbeat.FromMilliseconds(round(HEARTBEAT_SECONDS * 1000))
        yield replica_pb2.ConnectResponse(welcome=welcome)
        router = _Router()
        self._routers.add(router)
        reader = asyncio.create_task(self._read(router, requests))
        try:
            while True:
                yield await router.reports.get()
        finally:
            reader.cancel()
            self._routers.discard(router)

    async def _read(self, router: _Router, requests: Any) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "submit":
                self._submit(router, request.submit)
            elif kind == "cancel":
                self.cancels.append(request.cancel.stream_id)
                router.streams.pop(request.cancel.stream_id, None)
            elif kind == "probe":
                self._report(router, [], answered_probe=request.probe.number)
            elif kind == "credit":
                self.num_credits += 1
                if (stream := router.streams.get(request.credit.stream_id)) is not None:
                    stream.credit += request.credit.tokens

    def _submit(self, router: _Router, submit: replica_pb2.Submit) -> None:
        spec = submit.spec
        self.submits.append(spec)
        router.streams[submit.stream_id] = _Stream(
            submit.stream_id,
            spec,
            [_Choice(choice.index, len(choice.emitted_token_ids)) for choice in spec.choices],
            spec.initial_credit,
            time.monotonic() + spec.time_left.ToNanoseconds() / 1e9,
            self.prefill_steps,
        )

    async def _run(self) -> None:
        next_step = time.monotonic()
        last_report = 0.0
        while True:
            next_step = max(next_step + self.step_seconds, time.monotonic() - 10 * self.step_seconds)
            await asyncio.sleep(max(0.0, next_step - time.monotonic()))
            if self.is_frozen:
                continue
            beat = time.monotonic() - last_report > HEARTBEAT_SECONDS / 2
            last_report = time.monotonic() if beat else last_report
            has_work = not self.is_stalled and any(router.streams for router in self._routers)
            self._step += has_work
            for router in self._routers:
                deltas = self._advance(router) if has_work else []
                if deltas or beat:
                    self._report(router, deltas)

    def _advance(self, router: _Router) -> list[replica_pb2.TokenDelta]:
        deltas = []
        for stream in list(router.streams.values()):
            if stream.wait_steps > 0:
                stream.wait_steps -= 1
                continue
            deltas.extend(
                self._next_token(stream, choice) for choice in stream.choices if not choice.over and stream.credit > 0
            )
            if all(choice.over for choice in stream.choices):
                del router.streams[stream.stream_id]
        return deltas

    def _next_token(self, stream: _Stream, choice: _Choice) -> replica_pb2.TokenDelta:
        spec = stream.spec
        end = replica_pb2.END_REASON_UNSPECIFIED
        token_ids = []
        first_index = choice.emitted
        if self.refuses:
            end = replica_pb2.END_REASON_REFUSED
        elif time.monotonic() >= stream.deadline:
            end = replica_pb2.END_REASON_DEADLINE
        else:
            token_id = self.tokens(spec, choice.index, choice.emitted)
            token_ids.append(token_id)
            choice.emitted += 1
            stream.credit -= 1
            self.num_tokens += 1
            self.most_emitted = max(self.most_emitted, choice.emitted)
            if token_id in spec.stop_token_ids and choice.emitted > spec.min_tokens:
                end = replica_pb2.END_REASON_STOP
            elif choice.emitted >= spec.max_tokens:
                end = replica_pb2.END_REASON_LENGTH
        choice.over = end != replica_pb2.END_REASON_UNSPECIFIED
        return replica_pb2.TokenDelta(
            stream_id=stream.stream_id, choice=choice.index, first_index=first_index, token_ids=token_ids, end=end
        )

    def _report(
        self, router: _Router, deltas: Sequence[replica_pb2.TokenDelta], answered_probe: int | None = None
    ) -> None:
        report = replica_pb2.StepReport(
            step=self._step, deltas=deltas, load=self._load(), answered_probe=answered_probe
        )
        router.reports.put_nowait(replica_pb2.ConnectResponse(report=report))

    def _load(self) -> replica_pb2.Load:
        return replica_pb2.Load(running=self.num_streams, total_blocks=4096, used_blocks=16 * self.num_streams)


class FakeDirectory(control_pb2_grpc.DirectoryServiceServicer):
    """Lists replicas that tests put into it."""

    def __init__(self, *replicas: FakeReplica, region: str = "local") -> None:
        self.replicas: list[FakeReplica] = list(replicas)
        self.region = region
        self.address = ""
        self.version = 0
        self.sends_routers_away = False
        self._server: Any = None

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        """Serve; returns host:port."""
        self._server = rpc.server()
        control_pb2_grpc.add_DirectoryServiceServicer_to_server(self, self._server)
        self.address = rpc.listen(self._server, listen, "fake directory")
        await self._server.start()
        return self.address

    async def stop(self) -> None:
        """End at once."""
        await self._server.stop(0)

    async def WatchReplicas(  # noqa: N802
        self, request: control_pb2.WatchReplicasRequest, context: Any
    ) -> AsyncIterator[control_pb2.WatchReplicasResponse]:
        """The whole directory every 50 ms."""
        told: dict[tuple[str, int], int] = {}
        while True:
            self.version += 1
            entries = [replica.entry() for replica in self.replicas]
            whole = control_pb2.WatchReplicasResponse(region=self.region, version=self.version, replicas=entries)
            whole.drain = self.sends_routers_away
            yield without_prefixes(whole, told if request.wants_prefixes else None)
            await asyncio.sleep(0.05)


async def _serve(arguments: argparse.Namespace) -> None:
    vocabulary = range(arguments.first_token, arguments.last_token)
    replicas = [
        FakeReplica(
            hashed_tokens(vocabulary),
            model=arguments.model,
            replica_id=f"{arguments.model}/{index}",
            step_seconds=arguments.step_seconds,
        )
        for index in range(arguments.replicas)
    ]
    for replica in replicas:
        await replica.start()
    directory = FakeDirectory(*replicas)
    await directory.start(arguments.listen)
    print(json.dumps({"directory": directory.address, "replicas": [r.address for r in replicas]}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve fake replicas and their directory until killed; prints their addresses as one JSON line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument("--listen", default="127.0.0.1:0", help="address of the directory")
    parser.add_argument("--first-token", type=int, default=1000)
    parser.add_argument("--last-token", type=int, default=20000)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
