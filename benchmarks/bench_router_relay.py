"""What the router costs: CPU time a relayed token and a request, added latency, memory a stream, time to start.

A fake replica process sends tokens at a fixed rate through one router process to this process. CPU time is the
router's own, as the kernel counts it. `python benchmarks/bench_router_relay.py --help` lists the knobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from cluster import rpc
from cluster.config import default_store
from cluster.router.choose import Candidate, StepCosts, choose_replica

ROUTER = """
import sys
from pathlib import Path
from cluster.config import load_config
from cluster.router.main import run
run(load_config(Path(sys.argv[1])), on_listening=lambda address: print(address, flush=True))
"""


@contextmanager
def process(*command: str) -> Iterator[tuple[psutil.Process, str]]:
    """A Python process and the first line that it prints."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield psutil.Process(running.pid), running.stdout.readline().strip()
        finally:
            running.terminate()
            running.wait(30)


async def stream(channel: grpc.aio.Channel, request: api.GenerateRequest, stats: dict[str, list[float]]) -> int:
    """Read one answer; returns its tokens."""
    stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
    begin = last = time.perf_counter()
    tokens = deltas = 0
    async for event in stub.Generate(request, timeout=120):
        if event.WhichOneof("event") == "delta":
            now = time.perf_counter()
            stats["gap" if tokens else "first"].append(now - (last if tokens else begin))
            last = now
            tokens += len(event.delta.token_ids)
            deltas += 1
    stats["deltas"].append(deltas)
    return tokens


def cpu_seconds(router: psutil.Process) -> float:
    times = router.cpu_times()
    return times.user + times.system


def milliseconds(values: list[float], share: float) -> float:
    return 1000 * statistics.quantiles(values, n=1000)[int(share * 1000) - 1]


async def measure(address: str, router: psutil.Process, options: argparse.Namespace) -> dict[str, float]:
    """Run the load and read the router's counters around it."""
    request = api.GenerateRequest(
        model="bench", prompt="Tell me a story about a boat.", max_tokens=options.tokens, sampling={"seed": 1}
    )
    channels = [rpc.channel(address, link=rpc.Link.PUBLIC) for _ in range(options.channels)]
    warm: dict[str, list[float]] = {"first": [], "gap": [], "deltas": []}
    await asyncio.gather(*(stream(channel, request, warm) for channel in channels))
    stats: dict[str, list[float]] = {"first": [], "gap": [], "deltas": []}
    idle_begin, cpu_idle = time.perf_counter(), cpu_seconds(router)
    await asyncio.sleep(1.0)
    idle = (cpu_seconds(router) - cpu_idle) / (time.perf_counter() - idle_begin)
    memory, begin, cpu = router.memory_info().rss, time.perf_counter(), cpu_seconds(router)
    tokens = 0
    for _ in range(options.rounds):
        tasks = [stream(channels[i % len(channels)], request, stats) for i in range(options.streams)]
        tokens += sum(await asyncio.gather(*tasks))
    wall, used = time.perf_counter() - begin, cpu_seconds(router) - cpu
    for channel in channels:
        await channel.close()
    requests = options.streams * options.rounds
    return {
        "requests": requests,
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "tokens_per_delta": tokens / sum(stats["deltas"]),
        "router_cpu_share": used / wall,
        "router_idle_cpu_share": idle,
        "cpu_us_per_token": 1e6 * used / tokens,
        "first_token_ms_p50": milliseconds(stats["first"], 0.5),
        "first_token_ms_p99": milliseconds(stats["first"], 0.99),
        "gap_ms_p50": milliseconds(stats["gap"], 0.5),
        "gap_ms_p99": milliseconds(stats["gap"], 0.99),
        "memory_kib_per_stream": (router.memory_info().rss - memory) / 1024 / options.streams,
    }


def choice_microseconds(num_replicas: int = 200, rounds: int = 200) -> float:
    """CPU time of one choice among many replicas, here in this process."""
    rng = random.Random(1)
    costs = StepCosts(0.01, 1e-5, 1e-9, 0.01, 1e-4, 1e-7)
    candidates = [
        Candidate(
            eligible=True,
            rtt=rng.random() / 10,
            costs=costs,
            batch_tokens=8192,
            running=rng.randrange(60),
            context_tokens=rng.randrange(10**5),
            pending_prefill_tokens=rng.randrange(10**4),
            prefill_share=rng.random(),
            free_tokens=rng.randrange(10**5),
            used_tokens=10**5,
        )
        for _ in range(num_replicas)
    ]
    cached = [rng.randrange(1000) for _ in candidates]
    begin = time.process_time()
    for _ in range(rounds):
        choose_replica(2000, 200.0, candidates, cached, rng)
    return 1e6 * (time.process_time() - begin) / rounds


def run(options: argparse.Namespace) -> dict[str, float]:
    """Start the processes and measure."""
    fake = ("-m", "tests.support.fake_replica", "--model", "bench", "--step-seconds", str(1 / options.rate))
    with process(*fake) as (_, line), tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "argosy.yaml"
        config.write_text(
            json.dumps(
                {
                    "models": [{"name": "bench", "path": str(options.checkpoint)}],
                    "router": {"listen": "127.0.0.1:0", "coalesce_seconds": options.coalesce},
                    "controller": {"listen": json.loads(line)["directory"]},
                }
            )
        )
        begin = time.perf_counter()
        with process("-c", ROUTER, str(config)) as (router, address):
            start = time.perf_counter() - begin
            figures = asyncio.run(measure(address, router, options))
            return {"start_seconds": start, **figures, "choose_us_at_200_replicas": choice_microseconds()}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, default=50, help="connections that the streams share")
    parser.add_argument("--coalesce", type=float, default=0.0, help="the router's coalesce_seconds")
    parser.add_argument("--checkpoint", type=Path, default=default_store() / "smollm2-135m-instruct")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    print(json.dumps({key: round(value, 4) for key, value in run(parser.parse_args()).items()}, indent=2))


if __name__ == "__main__":
    main()
