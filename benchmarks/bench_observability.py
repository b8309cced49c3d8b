"""What metrics and traces cost at their defaults: tokens a second of a real replica with them and without, in turns.

Two replicas of the same model stand side by side, each behind a router of its own. One counts, is scraped every second,
and traces one request in twenty to a collector; the other's engine is told nothing and nobody asks it. They are loaded
in turns, and each pair in the other order, so that whatever else the machine does meets both. CPU time is the kernel's
count for this process (routers and engines) and the ranks, for a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.config import default_store
from cluster.replica.observer import Unobserved
from cluster.telemetry.exporter import exported
from tests.support.fault_world import FaultWorld, fault_world
from tests.support.otlp_collector import running_collector
from tests.support.router_world import request

STREAMS, TOKENS, PROMPT = 16, 48, 64
TURNS = 14
SCRAPE_SECONDS = 1.0


@dataclass
class Side:
    """One replica, and what its turns measured."""

    name: str
    faults: FaultWorld
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """Of this process and of its ranks."""
        assert self.faults.sites[0].current is not None
        workers = [psutil.Process(worker.pid) for worker in self.faults.sites[0].current.workers]
        return sum(sum(process.cpu_times()[:2]) for process in (psutil.Process(), *workers))

    async def turn(self, rng: random.Random) -> None:
        """One load, measured."""
        calls = [self._ask(rng) for _ in range(STREAMS)]
        began, cpu = time.perf_counter(), self.cpu_seconds()
        tokens = sum(await asyncio.gather(*calls))
        self.rates.append(tokens / (time.perf_counter() - began))
        self.cpu.append((self.cpu_seconds() - cpu) / tokens)

    async def _ask(self, rng: random.Random) -> int:
        ask = request(
            token_ids={"ids": [rng.randrange(1000) for _ in range(PROMPT)]},
            max_tokens=TOKENS,
            stop={"ignore_end_of_text": True},
        )
        tokens = 0
        async for event in self.faults.world.inference.Generate(ask, timeout=120):
            tokens += len(event.delta.token_ids)
        return tokens


@contextlib.asynccontextmanager
async def scraped(faults: FaultWorld) -> AsyncIterator[None]:
    """Ask router and engine for their metrics as Prometheus would."""
    site = faults.sites[0].current
    assert site is not None

    async def scrape(addresses: list[str]) -> None:
        while True:
            for address in addresses:
                await asyncio.to_thread(lambda at=address: urllib.request.urlopen(f"http://{at}/metrics").read())
            await asyncio.sleep(SCRAPE_SECONDS)

    with exported(faults.world.metrics.registry, "127.0.0.1:0", "router") as router:
        assert router is not None
        task = asyncio.create_task(scrape([router, site.addresses.metrics]))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def measure(folder: Path) -> tuple[Side, Side]:
    """Both sides, loaded in turns."""
    checkpoint = default_store() / "smollm2-135m-instruct"
    with running_collector() as collector:
        traces = {"endpoint": collector.address}
        async with (
            fault_world(checkpoint, folder / "on", count=1, tp=1, real=True, traces=traces) as on,
            fault_world(checkpoint, folder / "off", count=1, tp=1, real=True) as off,
        ):
            assert off.sites[0].current is not None
            off.sites[0].current.engine._engine._observer = Unobserved()
            sides = (Side("on", on), Side("off", off))
            rng = random.Random(1)
            for side in sides:
                await side.turn(rng)  # warm
                side.rates.clear()
                side.cpu.clear()
            for turn in range(TURNS):
                for side in sides if turn % 2 else sides[::-1]:
                    async with scraped(on) if side.name == "on" else contextlib.nullcontext():
                        await side.turn(rng)
            await print_utilisation(on)
    return sides


async def print_utilisation(faults: FaultWorld) -> None:
    """MFU and MBU of the replica's one rank over the whole run, from its own figures."""
    assert faults.sites[0].current is not None
    (rank,) = (await faults.sites[0].current.status()).ranks
    figures = rank.figures
    print(f"peaks: {figures.peak_flops / 1e9:.1f} GFLOP/s, {figures.peak_bytes / 1e9:.2f} GB/s")
    for name, phase in (("prefill", figures.prefill), ("decode", figures.decode)):
        mfu = phase.flops / phase.busy_seconds / figures.peak_flops
        mbu = phase.memory_bytes / phase.busy_seconds / figures.peak_bytes
        print(f"{name}: {phase.steps} steps, {phase.busy_seconds:.1f} s busy, MFU {mfu:.1%}, MBU {mbu:.1%}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        on, off = asyncio.run(measure(Path(folder)))
    for side in (on, off):
        rate, cpu = statistics.median(side.rates), 1e6 * statistics.median(side.cpu)
        print(f"metrics and traces {side.name:>3}: {rate:7.1f} tokens/s, {cpu:7.0f} µs of CPU a token (medians)")
    slower = [1 - with_ / without for with_, without in zip(on.rates, off.rates, strict=True)]
    dearer = [with_ / without - 1 for with_, without in zip(on.cpu, off.cpu, strict=True)]
    for what, shares in (("throughput", slower), ("CPU time", dearer)):
        low, _, high = statistics.quantiles(shares, n=4)
        print(
            f"cost in {what}: {statistics.median(shares):+.1%}, middle half {low:+.1%} to {high:+.1%} "
            f"({TURNS} pairs of {STREAMS} streams of {TOKENS} tokens)"
        )


if __name__ == "__main__":
    main()
