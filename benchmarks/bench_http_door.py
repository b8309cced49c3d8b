"""What the HTTP door adds to the gRPC one: time to the first token and to the end of an answer, asked in turn.

One router process, one fake replica process, one request at a time through either door, chunks read as they come. The
same question and the same 20 tokens; the doors take turns, so that both meet the same machine.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from benchmarks.bench_router_relay import ROUTER, cpu_seconds, process
from cluster import rpc
from cluster.config import default_store

TOKENS = 20
TURNS = 400
STEP_SECONDS = 0.002
PROMPT = "Tell me a story about a boat."


async def by_grpc(stub: Any) -> AsyncIterator[None]:
    """Yields at each event that brings text."""
    request = api.GenerateRequest(model="bench", prompt=PROMPT, max_tokens=TOKENS, sampling={"seed": 1})
    async for event in stub.Generate(request, timeout=60):
        if event.HasField("delta"):
            yield


async def by_http(session: aiohttp.ClientSession, url: str) -> AsyncIterator[None]:
    """The same, of server-sent events."""
    body = {"model": "bench", "prompt": PROMPT, "max_tokens": TOKENS, "seed": 1, "stream": True}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b'data: {"'):
                yield


async def timed(events: AsyncIterator[None]) -> tuple[float, float]:
    """Milliseconds to the first event and to the end."""
    begin = time.perf_counter()
    first = None
    async for _ in events:
        first = first or time.perf_counter()
    assert first is not None
    return 1000 * (first - begin), 1000 * (time.perf_counter() - begin)


async def measure(address: str, url: str, router: Any) -> dict[str, dict[str, list[float]]]:
    """By door: milliseconds, and the router's CPU milliseconds a request."""
    found: dict[str, dict[str, list[float]]] = {
        door: {"first token": [], "whole answer": [], "router CPU": []} for door in ("gRPC", "HTTP")
    }
    async with rpc.channel(address, link=rpc.Link.PUBLIC) as channel, aiohttp.ClientSession() as session:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        for turn in range(TURNS + 20):
            for door, events in (("gRPC", by_grpc(stub)), ("HTTP", by_http(session, url))):
                cpu = cpu_seconds(router)
                first, whole = await timed(events)
                if turn >= 20:
                    found[door]["first token"].append(first)
                    found[door]["whole answer"].append(whole)
                    found[door]["router CPU"].append(1000 * (cpu_seconds(router) - cpu))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        file = Path(folder) / "argosy.yaml"
        with process("-m", "benchmarks.router_mock", "--step-seconds", str(STEP_SECONDS)) as (_, line):
            config = {
                "models": [{"name": "bench", "path": str(default_store() / "smollm2-135m-instruct")}],
                "router": {"listen": "127.0.0.1:0", "http_listen": f"127.0.0.1:{port}"},
                "controller": {"listen": json.loads(line)["directory"]},
                "ledger": {"store": "memory"},
            }
            file.write_text(json.dumps(config))
            with process("-c", ROUTER, str(file)) as (router, address):
                found = asyncio.run(measure(address, f"http://127.0.0.1:{port}", router))
    print(f"one request at a time, {TOKENS} tokens, {TURNS} requests by each door, milliseconds\n")
    print(f"{'':14} {'gRPC p50':>10} {'HTTP p50':>10} {'HTTP adds':>10}")
    for what in ("first token", "whole answer", "router CPU"):
        middle = statistics.mean if what == "router CPU" else statistics.median
        grpc_ms, http_ms = (middle(found[door][what]) for door in ("gRPC", "HTTP"))
        print(f"{what:14} {grpc_ms:10.2f} {http_ms:10.2f} {http_ms - grpc_ms:10.2f}")
    print("\n(router CPU is the mean of what the kernel counts in ticks)")


if __name__ == "__main__":
    main()
