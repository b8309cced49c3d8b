"""What metrics and traces cost at their defaults: tokens a second and CPU time with them and without, in turns.

Two replicas stand side by side, each behind a router of its own; their one rank takes 10 ms a pass, whatever it
computes, so what is measured is the engine, the router and the client, all in this process. One replica counts, and
traces one request in twenty to a collector; the other's engine is told nothing. They are loaded in turns, and each pair
in the other order, so that whatever else the machine does meets both. CPU time is the kernel's count for this process,
the collector's included. Scrapes are measured by themselves, since a turn is shorter than the time between two.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from cluster.config import default_store
from cluster.replica.figures import Figures
from cluster.replica.observer import Unobserved
from cluster.replica.plan import PlannedRow, StepPlan
from cluster.telemetry import EngineMetrics, RouterMetrics
from cluster.telemetry.exporter import exported
from cluster.telemetry.router import RequestFigures
from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from tests.support.fault_world import FaultWorld, fault_world
from tests.support.otlp_collector import running_collector
from tests.support.router_world import request

STREAMS, TOKENS, PROMPT = 16, 64, 64
TURNS = 20
PASS_SECONDS = 0.01
SCRAPES = 20
STEPS = 5000
SCRAPE_INTERVAL_SECONDS = 15.0


@dataclass
class Side:
    """One replica, and what its turns measured."""

    name: str
    faults: FaultWorld
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    async def turn(self, rng: random.Random) -> None:
        """One load, measured."""
        calls = [self._ask(rng) for _ in range(STREAMS)]
        began, cpu = time.perf_counter(), time.process_time()
        tokens = sum(await asyncio.gather(*calls))
        self.rates.append(tokens / (time.perf_counter() - began))
        self.cpu.append((time.process_time() - cpu) / tokens)

    async def _ask(self, rng: random.Random) -> int:
        ask = request(
            token_ids={"ids": [rng.randrange(900) for _ in range(PROMPT)]},
            max_tokens=TOKENS,
            stop={"ignore_end_of_text": True},
        )
        tokens = 0
        async for event in self.faults.world.inference.Generate(ask, timeout=120):
            tokens += len(event.delta.token_ids)
        return tokens


def bookkeeping_seconds(sequences: int) -> float:
    """What the engine spends on a decode step's figures and metrics, by itself."""
    config = ModelConfig.from_checkpoint(default_store() / "smollm2-135m-instruct")
    figures = Figures(config, partition(config, ParallelDims()), "float32", metrics=EngineMetrics("m", "r"))
    rows = tuple(PlannedRow(slot, (1, slot), 0, None, 1, 100, (), True) for slot in range(sequences))
    plan = StepPlan(1, 0, rows, (), (), (), 0, sequences, 101 * sequences)
    begin = time.process_time()
    for _ in range(STEPS):
        figures.step_sent(0.0)
        figures.step_done(0.0, plan, 0.01, in_flight=1)
    return (time.process_time() - begin) / STEPS


def request_seconds() -> float:
    """What a router spends on a request's metrics, by itself."""
    metrics = RouterMetrics()
    figures = RequestFigures("m", "tenant", 100, 10, 64, 1, 1.0, 0.01, 0.1, (), 0.5)
    begin = time.process_time()
    for _ in range(STEPS):
        metrics.observe(figures)
    return (time.process_time() - begin) / STEPS


async def scrape_seconds(faults: FaultWorld) -> float:
    """CPU seconds of one scrape of router and engine, rendering and reading."""
    site = faults.sites[0].current
    assert site is not None
    with exported(faults.world.metrics.registry, "127.0.0.1:0", "router") as router:
        before = time.process_time()
        for _ in range(SCRAPES):
            for address in (router, site.addresses.metrics):
                await asyncio.to_thread(lambda at=address: urllib.request.urlopen(f"http://{at}/metrics").read())
        return (time.process_time() - before) / SCRAPES


async def measure(folder: Path) -> tuple[Side, Side, float]:
    """Both sides, loaded in turns; and what a scrape costs."""
    checkpoint = default_store() / "smollm2-135m-instruct"
    with running_collector() as collector:
        traces = {"endpoint": collector.address}
        async with (
            fault_world(checkpoint, folder / "on", count=1, tp=1, pass_seconds=PASS_SECONDS, traces=traces) as on,
            fault_world(checkpoint, folder / "off", count=1, tp=1, pass_seconds=PASS_SECONDS) as off,
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
                    await side.turn(rng)
            scrape = await scrape_seconds(on)
    return *sides, scrape


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        on, off, scrape = asyncio.run(measure(Path(folder)))
    for side in (on, off):
        rate, cpu = statistics.median(side.rates), 1e6 * statistics.median(side.cpu)
        print(f"metrics and traces {side.name:>3}: {rate:7.1f} tokens/s, {cpu:7.0f} µs of CPU a token (medians)")
    slower = [1 - with_ / without for with_, without in zip(on.rates, off.rates, strict=True)]
    dearer = [with_ / without - 1 for with_, without in zip(on.cpu, off.cpu, strict=True)]
    total = statistics.fmean(on.cpu) / statistics.fmean(off.cpu) - 1
    print(f"CPU time of all turns together: {total:+.1%}")
    for what, shares in (("throughput", slower), ("CPU time", dearer)):
        low, _, high = statistics.quantiles(shares, n=4)
        print(
            f"cost in {what}: {statistics.median(shares):+.1%}, middle half {low:+.1%} to {high:+.1%} "
            f"({TURNS} pairs of {STREAMS} streams of {TOKENS} tokens)"
        )
    for sequences in (1, STREAMS, 4 * STREAMS):
        seconds = bookkeeping_seconds(sequences)
        print(
            f"bookkeeping of a decode step of {sequences} sequences: {1e6 * seconds:.0f} µs, "
            f"{seconds / PASS_SECONDS:.2%} of a pass of {1000 * PASS_SECONDS:.0f} ms"
        )
    print(f"metrics of a request at its router: {1e6 * request_seconds():.0f} µs")
    share = scrape / SCRAPE_INTERVAL_SECONDS
    print(
        f"a scrape: {1000 * scrape:.1f} ms of CPU; every {SCRAPE_INTERVAL_SECONDS:.0f} s that is {share:.2%} of a core"
    )


if __name__ == "__main__":
    main()
