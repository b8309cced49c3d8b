"""Argosy's router against sglang-router and vllm-router: the same mock replica, by turns in one run.

    make bench-routers                                  install the peers (each in .bench/NAME) and run
    python -m benchmarks.bench_router_peers --rounds 5

Argosy's router speaks gRPC to client and replica and makes text of tokens, the others pass HTTP chunks on. CPU time is
the router's own, as the kernel counts it. Added latency is against the same client at the mock itself, by the same
protocol. A peer that is not installed is skipped, and the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from argosy.internal.v1 import replica_pb2, replica_pb2_grpc
from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from benchmarks.bench_router_relay import ROUTER
from cluster import rpc
from cluster.config import default_store
from cluster.protocol import REPLICA_PROTOCOL_VERSION

ROOT = Path(__file__).parents[1]
PEERS = {
    "sglang-router": ["-m", "sglang_router.launch_router"],
    "vllm-router": ["-m", "vllm_router.launch_router"],
}
PROMPT = "Tell me a story about a boat."
Stream = Callable[[int, list[float], list[float]], Awaitable[int]]
"""(tokens to ask for, first-token times, gaps) to tokens received."""


@contextmanager
def child(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def grpc_client(address: str, channels: int) -> tuple[Stream, Callable[[], Awaitable[None]]]:
    """Through a router of ours."""
    pool = [rpc.channel(address, link=rpc.Link.PUBLIC) for _ in range(channels)]

    async def stream(tokens: int, first: list[float], gaps: list[float]) -> int:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(random.choice(pool))
        request = api.GenerateRequest(
            model="bench", prompt=PROMPT, max_tokens=tokens, sampling={"seed": 1}, stop={"ignore_end_of_text": True}
        )
        begin = last = time.perf_counter()
        received = 0
        async for event in stub.Generate(request, timeout=300):
            if event.WhichOneof("event") == "delta":
                now = time.perf_counter()
                (gaps if received else first).append(now - (last if received else begin))
                last = now
                received += len(event.delta.token_ids)
        return received

    async def close() -> None:
        await asyncio.gather(*(channel.close() for channel in pool))

    return stream, close


def http_client(address: str) -> tuple[Stream, Callable[[], Awaitable[None]]]:
    """Through a peer, or at the mock itself."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(300))

    async def stream(tokens: int, first: list[float], gaps: list[float]) -> int:
        body = {"model": "bench", "prompt": PROMPT, "max_tokens": tokens, "stream": True}
        begin = last = time.perf_counter()
        received = 0
        async with session.post(f"http://{address}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    (gaps if received else first).append(now - (last if received else begin))
                    last = now
                    received += 1
        return received

    return stream, session.close


def replica_client(address: str) -> tuple[Stream, Callable[[], Awaitable[None]]]:
    """At the mock itself, by our internal protocol: one connection for each stream."""
    channel = rpc.channel(address)

    async def stream(tokens: int, first: list[float], gaps: list[float]) -> int:
        call = replica_pb2_grpc.ReplicaServiceStub(channel).Connect()  # type: ignore[no-untyped-call]
        hello = replica_pb2.Hello(router_id="bench", protocol_version=REPLICA_PROTOCOL_VERSION)
        await call.write(replica_pb2.ConnectRequest(hello=hello))
        await call.read()
        spec = replica_pb2.GenerationSpec(
            prompt_token_ids=range(9), choices=[{"index": 0}], max_tokens=tokens, initial_credit=tokens
        )
        spec.time_left.FromSeconds(300)
        begin = last = time.perf_counter()
        await call.write(replica_pb2.ConnectRequest(submit=replica_pb2.Submit(stream_id=1, spec=spec)))
        received = 0
        while received < tokens:
            for delta in (await call.read()).report.deltas:
                now = time.perf_counter()
                (gaps if received else first).append(now - (last if received else begin))
                last = now
                received += len(delta.token_ids)
        call.cancel()
        return received

    return stream, channel.close


def cpu_seconds(process: psutil.Process) -> float:
    tree = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in tree)


async def load(stream: Stream, count: int, tokens: int, spread: float) -> tuple[list[float], list[float], int]:
    """`count` streams that begin at random within `spread` seconds."""
    first: list[float] = []
    gaps: list[float] = []

    async def one() -> int:
        await asyncio.sleep(random.random() * spread)
        return await stream(tokens, first, gaps)

    received = sum(await asyncio.gather(*(one() for _ in range(count))))
    return first, gaps, received


async def measure(
    client: tuple[Stream, Callable[[], Awaitable[None]]], process: psutil.Process | None, options: argparse.Namespace
) -> dict[str, float]:
    """One setup: latency and CPU at `streams`, CPU of requests of one token, memory of 1,000 streams."""
    stream, close = client
    await load(stream, 10, 8, 0.1)
    first: list[float] = []
    tokens, cpu = 0, cpu_seconds(process) if process else 0.0
    for _ in range(options.rounds):
        new, _, received = await load(stream, options.streams, options.tokens, 0.5)
        first += new
        tokens += received
    used = (cpu_seconds(process) if process else 0.0) - cpu
    result = {"first_p50": 1e3 * statistics.median(first), "first_p99": 1e3 * statistics.quantiles(first, n=100)[98]}
    if process is not None:
        cpu = cpu_seconds(process)
        await load(stream, 300, 1, 2.0)
        request = 1e6 * (cpu_seconds(process) - cpu) / 300
        requests = options.rounds * options.streams
        result |= {"us_per_request": request, "us_per_token": 1e6 * used / tokens}
        result["us_per_token_less_request"] = (1e6 * used - requests * request) / (tokens - requests)
        before = process.memory_info().rss
        running = asyncio.create_task(load(stream, 1000, 40, 1.0))
        most = 0
        while not running.done():
            most = max(most, process.memory_info().rss)
            await asyncio.sleep(0.2)
        await running
        result["mib_per_1000_streams"] = (most - before) / 2**20
        result["rss_mib"] = before / 2**20
    await close()
    return result


@contextmanager
def argosy(mock: dict[str, str], coalesce: float) -> Iterator[tuple[psutil.Process, str]]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "argosy.yaml"
        config.write_text(
            json.dumps(
                {
                    "models": [{"name": "bench", "path": str(default_store() / "smollm2-135m-instruct")}],
                    "router": {"listen": "127.0.0.1:0", "coalesce_seconds": coalesce, "max_streams": 4096},
                    "controller": {"listen": mock["directory"]},
                    "ledger": {"store": "memory"},
                }
            )
        )
        with child(sys.executable, "-c", ROUTER, str(config)) as process:
            address = read_line(process)
            yield psutil.Process(process.pid), address


@contextmanager
def peer(name: str, mock: dict[str, str]) -> Iterator[tuple[psutil.Process, str]]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, metrics = one.getsockname()[1], two.getsockname()[1]
    arguments = ["--worker-urls", f"http://{mock['http']}", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(metrics)]
    arguments += ["--prometheus-host", "127.0.0.1"]
    python = ROOT / ".bench" / name / "bin" / "python"
    with child(str(python), *PEERS[name], *arguments, stderr=subprocess.DEVNULL) as process:
        yield psutil.Process(process.pid), f"127.0.0.1:{port}"


async def until_serves(client: tuple[Stream, Callable[[], Awaitable[None]]], seconds: float = 60.0) -> None:
    """Ask until an answer comes."""
    end = time.monotonic() + seconds
    while True:
        try:
            if await client[0](1, [], []):
                break
        except Exception:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.3)
    await client[1]()


async def run_one(name: str, mock: dict[str, str], options: argparse.Namespace) -> dict[str, float]:
    """One router, or the mock itself."""
    if name == "mock, internal gRPC":
        return await measure(replica_client(mock["replica"]), None, options)
    if name == "mock, HTTP":
        return await measure(http_client(mock["http"]), None, options)
    if name in PEERS:
        with peer(name, mock) as (process, address):
            await until_serves(http_client(address))
            return await measure(http_client(address), process, options)
    with argosy(mock, 0.02 if "20 ms" in name else 0.0) as (process, address):
        await until_serves(grpc_client(address, 1))
        return await measure(grpc_client(address, options.streams), process, options)


def table(results: dict[str, dict[str, float]]) -> Iterator[str]:
    """Markdown, each router against its own protocol's mock."""
    yield "| router | added p50 ms | added p99 ms | CPU µs a token | CPU µs a request | MiB a 1,000 streams | RSS MiB |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, row in results.items():
        if "us_per_token" not in row:
            continue
        direct = results["mock, HTTP" if name in PEERS else "mock, internal gRPC"]
        yield (
            f"| {name} | {row['first_p50'] - direct['first_p50']:.1f} | {row['first_p99'] - direct['first_p99']:.1f} "
            f"| {row['us_per_token']:.0f} | {row['us_per_request']:.0f} | {row['mib_per_1000_streams']:.0f} "
            f"| {row['rss_mib']:.0f} |"
        )
    peers = [row["us_per_token"] for name, row in results.items() if name in PEERS]
    for name, row in results.items():
        if peers and name.startswith("argosy"):
            yield f"\n{name}: {row['us_per_token'] / min(peers):.2f} x the better peer's CPU a token"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of each stream")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default="", help="of the routers, those whose names contain this")
    options = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    results: dict[str, dict[str, float]] = {}
    with child(sys.executable, "-m", "benchmarks.router_mock", "--step-seconds", str(1 / options.rate)) as process:
        mock = json.loads(read_line(process))
        names = ["mock, internal gRPC", "mock, HTTP", "argosy", "argosy, coalesced 20 ms", *PEERS]
        for name in names:
            if not name.startswith("mock") and options.only not in name:
                continue
            if name in PEERS and not (ROOT / ".bench" / name / "bin" / "python").exists():
                print(f"{name}: skipped, .bench/{name} is not there; `make bench-routers` installs it")
                continue
            results[name] = asyncio.run(run_one(name, mock, options))
            print(name, {key: round(value, 1) for key, value in results[name].items()}, flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
