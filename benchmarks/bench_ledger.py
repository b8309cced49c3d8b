"""What the ledger costs: settled requests a second with group commit, and how long one request waits for it.

Each request is reserved under two limits, marked twice ahead of its tokens and settled: four durable writes, on disk
(WAL, synchronous = FULL) before each returns.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from cluster.clock import SystemClock
from cluster.ids import ModelName, RequestId, TenantId, new_request_id
from cluster.ledger.database import SqliteDatabase
from cluster.ledger.ledger import LedgerOptions, StoredLedger
from cluster.ledger.records import Ending, Limits, Reservation, Settlement

LIMITS = Limits(tokens_per_minute=10**12, concurrent_streams=10**6)


async def request(ledger: StoredLedger, request_id: RequestId, tenant: str, waits: list[float]) -> None:
    """One request's whole life in the ledger."""
    begin = time.perf_counter()
    row = await ledger.open(Reservation(request_id, ModelName("m"), 100, 256, tenant=TenantId(tenant), limits=LIMITS))
    waits.append(time.perf_counter() - begin)
    accepted = 0
    for tokens in (1, 64):
        if (written := row.accept(tokens)) is not None:
            await written
        accepted += tokens
    await row.settle(Settlement(Ending.COMPLETE, 100, 0, accepted))


async def measure(directory: Path, concurrent: int, total: int) -> tuple[float, float, float, float, float]:
    """Settled requests a second, CPU time of each in µs, p50 and p99 of the wait to open in ms, requests a commit."""
    path = directory / f"ledger-{concurrent}.db"
    ledger = StoredLedger(lambda: SqliteDatabase(path), SystemClock(), LedgerOptions("bench", directory))
    await ledger.start()
    waits: list[float] = []

    # Ids come from the router, whatever keeps its books.
    ids = [[new_request_id() for _ in range(total // concurrent)] for _ in range(concurrent)]

    async def client(number: int) -> None:
        for request_id in ids[number]:
            await request(ledger, request_id, f"tenant-{number % 16}", waits)

    await request(ledger, new_request_id(), "warm-up", [])
    commits, begin, cpu = ledger.num_commits, time.perf_counter(), time.process_time()
    await asyncio.gather(*(client(number) for number in range(concurrent)))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    shared = len(waits) / (ledger.num_commits - commits)
    await ledger.close()
    cuts = statistics.quantiles(waits, n=100)
    return len(waits) / seconds, 1e6 * cpu / len(waits), 1000 * cuts[49], 1000 * cuts[98], shared


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="where the database lies; default: the temporary directory")
    options = parser.parse_args(arguments)
    print(
        f"{'concurrent':>10} {'settled/s':>10} {'CPU µs':>8} {'open p50 ms':>12} {'p99 ms':>8} {'requests/commit':>16}"
    )
    for concurrent, total in ((1, 200), (64, 6400), (512, 20480), (2048, 40960)):
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            rate, cpu, middle, late, shared = asyncio.run(measure(Path(directory), concurrent, total))
        print(f"{concurrent:>10} {rate:>10.0f} {cpu:>8.0f} {middle:>12.2f} {late:>8.2f} {shared:>16.2f}", flush=True)


if __name__ == "__main__":
    main()
