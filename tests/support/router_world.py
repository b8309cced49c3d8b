"""A router in front of fake replicas, all in one event loop: what the router's integration tests stand on."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc
from cluster import rpc
from cluster.config import parse_config
from cluster.router.main import serve
from cluster.router.metering import MemoryLedger
from cluster.telemetry import RouterMetrics
from tests.support.fake_replica import FakeDirectory, FakeReplica

MODEL = "smollm2"
DEADLINE_SECONDS = 60.0
"""Of calls that test something else: a guard against hangs."""


def run_async(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test coroutine on a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@dataclass
class Reply:
    """A whole answer."""

    started: api.Started = field(default_factory=api.Started)
    finished: api.Finished = field(default_factory=api.Finished)
    deltas: list[api.Delta] = field(default_factory=list)

    def text(self, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if delta.choice == choice)

    def token_ids(self, choice: int = 0) -> list[int]:
        return [token_id for delta in self.deltas if delta.choice == choice for token_id in delta.token_ids]

    def add(self, event: api.GenerateResponse) -> None:
        kind = event.WhichOneof("event")
        if kind == "delta":
            self.deltas.append(event.delta)
        else:
            setattr(self, kind, getattr(event, kind))


@dataclass
class World:
    """What a test can touch."""

    router: str
    channel: grpc.aio.Channel
    directory: FakeDirectory
    replicas: list[FakeReplica]
    ledger: MemoryLedger
    metrics: RouterMetrics
    stop: asyncio.Event
    cut: asyncio.Event
    serving: asyncio.Task[None]

    @property
    def inference(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def models(self) -> Any:
        return models_pb2_grpc.ModelServiceStub(self.channel)

    async def generate(self, request: api.GenerateRequest, timeout_seconds: float = DEADLINE_SECONDS) -> Reply:
        """Make a call and read it to its end."""
        reply = Reply()
        async for event in self.inference.Generate(request, timeout=timeout_seconds):
            reply.add(event)
        return reply

    def prometheus(self, name: str, **labels: str) -> float:
        """One sample, 0 if there is none."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until_ready(self, replicas: int) -> None:
        """Wait until the router can use so many replicas."""
        ask = models_pb2.GetModelRequest(model=MODEL)
        async with asyncio.timeout(20.0):
            while (await self.models.GetModel(ask, timeout=5)).model.ready_replicas != replicas:
                await asyncio.sleep(0.02)

    async def health(self, service: str) -> int:
        """Its state as `grpc.health.v1` gives it."""
        ask = health_pb2.HealthCheckRequest(service=service)
        return int((await health_pb2_grpc.HealthStub(self.channel).Check(ask, timeout=5)).status)

    async def until_health(self, service: str, status: int) -> None:
        """Wait for a state."""
        async with asyncio.timeout(20.0):
            while await self.health(service) != status:
                await asyncio.sleep(0.05)

    async def until(self, condition: Callable[[], bool], timeout_seconds: float = 20.0) -> None:
        """Wait for something to become true."""
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                await asyncio.sleep(0.01)


def request(**fields: Any) -> api.GenerateRequest:
    """A short request for the served model."""
    fields.setdefault("model", MODEL)
    if not {"prompt", "chat", "token_ids"} & fields.keys():
        fields["prompt"] = "Hello"
    return api.GenerateRequest(**fields)


@asynccontextmanager
async def router_world(
    checkpoint: Path,
    *replicas: FakeReplica,
    router: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **sections: Any,
) -> AsyncIterator[World]:
    """Start replicas, directory and router; stop them afterwards.

    Args:
        checkpoint: directory with the served model's tokenizer.
        router, model: keys of their configuration sections.
        sections: more of the configuration.
    """
    async with AsyncExitStack() as stack:
        for number, replica in enumerate(replicas):
            replica.model, replica.replica_id = MODEL, f"{MODEL}/{number}"
            await replica.start()
            stack.push_async_callback(replica.kill)
        directory = FakeDirectory(*replicas, region=sections.get("region", "local"))
        await directory.start()
        stack.push_async_callback(directory.stop)
        config = parse_config(
            {
                "models": [{"name": MODEL, "path": str(checkpoint), **(model or {})}],
                "router": {"listen": "127.0.0.1:0", "drain_seconds": 5, **(router or {})},
                "controller": {"listen": directory.address},
                **sections,
            }
        )
        ledger, metrics, stop, cut = MemoryLedger(), RouterMetrics(), asyncio.Event(), asyncio.Event()
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve(config, stop=stop, cut=cut, on_listening=listening.set_result, ledger=ledger, metrics=metrics)
        )
        await asyncio.wait([listening, serving], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        address = listening.result()
        channel = await stack.enter_async_context(rpc.channel(address, link=rpc.Link.PUBLIC))
        world = World(address, channel, directory, list(replicas), ledger, metrics, stop, cut, serving)
        try:
            if replicas:
                await world.until(lambda: all(replica.num_routers for replica in replicas))
            yield world
        finally:
            stop.set()
            cut.set()
            await asyncio.gather(serving, return_exceptions=True)
