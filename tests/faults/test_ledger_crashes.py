"""The ledger against death and absence: killed at every point, its store locked away, its receiver refusing."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigurationError, Reason, ServiceError
from cluster.ids import RequestId, TenantId
from cluster.ledger import group_commit
from cluster.ledger.database import SqliteDatabase
from cluster.ledger.export import export_batch, sink_of
from cluster.ledger.operations import Mark, Settle, to_json
from cluster.ledger.records import Ending, Limits, Settlement
from tests.support.ledgers import ledger, reservation, rows, settlement, used
from tests.support.router_world import run_async

ACME = TenantId("acme")

LIFE = """
import asyncio, sys, time
from pathlib import Path
from cluster.clock import SystemClock
from cluster.ids import TenantId
from cluster.ledger.database import SqliteDatabase
from cluster.ledger.export import export_batch, sink_of
from cluster.ledger.ledger import LedgerOptions, StoredLedger
from cluster.ledger.records import Ending, Limits, Reservation, Settlement

folder, stop_at = Path(sys.argv[1]), sys.argv[2]

def reach(point):
    print(point, flush=True)
    if point == stop_at:
        time.sleep(60)

def sink(events):
    sink_of("file://" + str(folder / "events.jsonl"))(events)
    reach("sent")

async def main():
    ledger = StoredLedger(lambda: SqliteDatabase(folder / "ledger.db"), SystemClock(), LedgerOptions("victim", folder))
    await ledger.start()
    reach("started")
    limits = Limits(tokens_per_day=1000, concurrent_streams=1)
    row = await ledger.open(Reservation("r", "m", 10, 100, tenant=TenantId("acme"), limits=limits))
    reach("opened")
    for accepted in range(1, 41):
        if (written := row.accept(1)) is not None:
            await written
        reach(str(accepted))
    await row.settle(Settlement(Ending.COMPLETE, 10, 0, 40))
    reach("settled")
    await export_batch(ledger, sink)
    reach("exported")

asyncio.run(main())
"""


async def kill_at(folder: Path, point: str) -> int:
    """Run a ledger's life in a process and SIGKILL it there; the tokens that had passed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LIFE, str(folder), point), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    tokens, line = 0, ""
    async with asyncio.timeout(60):
        while line != point:
            line = (await process.stdout.readline()).decode().strip()
            assert line, "it ended by itself"
            tokens = int(line) if line.isdigit() else tokens
    process.send_signal(signal.SIGKILL)
    await process.wait()
    process._transport.close()  # type: ignore[attr-defined] # asyncio leaves its pipes open otherwise
    return tokens


def journals(folder: Path) -> list[Path]:
    return list(folder.glob("*.journal"))


@pytest.mark.parametrize("point", ["started", "opened", "1", "20", "40", "settled", "sent", "exported"])
@run_async
async def test_whatever_was_accepted_is_settled_after_a_kill(tmp_path: Path, point: str) -> None:
    """T31: between reserve and export. The next router finds the process gone and needs no lease to end."""
    passed = await kill_at(tmp_path, point)
    sink = sink_of(f"file://{tmp_path / 'events.jsonl'}")
    async with ledger(lambda: SqliteDatabase(tmp_path / "ledger.db"), tmp_path) as books:
        while await export_batch(books, sink):
            pass
        found = await rows(books, "ending, prompt_tokens, completion_tokens, marked_tokens")
        statement = "SELECT holder FROM holders WHERE holder = 'victim'"
        assert await books.change(lambda database: database.query(statement)) == []
        if point == "started":
            assert found == []
            return
        [(ending, prompt, completion, marked)] = found
        assert ending == ("complete" if point in {"settled", "sent", "exported"} else "crashed")
        assert passed <= completion <= passed + 32
        assert completion == marked or ending == "complete"
        assert prompt == (10 if completion else 0)
        assert await used(books, "acme") == {"tokens_per_day": prompt + completion, "concurrent_streams": 0}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {event["id"] for event in events} == {"r"}
    assert len(events) == (2 if point == "sent" else 1), "at least once, and under one id"
    assert all(event["data"]["completion_tokens"] == completion for event in events)


@run_async
async def test_a_store_that_is_gone_refuses_hard_and_journals_soft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T18: streams go on, hard tenants wait outside, and afterwards everything is in the store, once."""
    monkeypatch.setattr(group_commit, "RETRY_SECONDS", 0.1)
    hard, soft = Limits(tokens_per_day=10_000), Limits(tokens_per_day=10_000, hard=False)
    async with ledger(lambda: SqliteDatabase(tmp_path / "ledger.db"), tmp_path) as books:
        running = await books.open(reservation(request_id="running", tenant=ACME, limits=hard))
        thief = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        thief.execute("BEGIN EXCLUSIVE")
        journalled = await books.open(reservation(request_id="soft", tenant=TenantId("soft"), limits=soft))
        with pytest.raises(ServiceError) as caught:
            await books.open(reservation(request_id="hard", tenant=ACME, limits=hard))
        assert caught.value.reason is Reason.LEDGER_UNAVAILABLE
        for row, tokens in ((running, 7), (journalled, 9)):
            written = row.accept(tokens)
            assert written is not None
            await written
            await row.settle(settlement(tokens))
        assert journals(tmp_path)
        thief.execute("ROLLBACK")
        thief.close()
        async with asyncio.timeout(20):
            while True:
                try:
                    found = await rows(books, "request_id, ending, completion_tokens")
                    break
                except ServiceError:
                    await asyncio.sleep(0.05)
        assert found == [("running", "complete", 7), ("soft", "complete", 9)]
        assert journals(tmp_path) == []
        assert await used(books, "acme") == {"tokens_per_day": 17}
        assert await used(books, "soft") == {"tokens_per_day": 19}
        await books.open(reservation(tenant=ACME, limits=hard))


@run_async
async def test_a_journal_outlives_its_router(tmp_path: Path) -> None:
    settled = Settle(RequestId("r"), Settlement(Ending.CANCELLED, 10, 0, 25), 1e9)
    entries = [to_json(Mark(RequestId("r"), 30)), to_json(settled)]
    async with ledger(lambda: SqliteDatabase(tmp_path / "ledger.db"), tmp_path) as books:
        await books.open(reservation(request_id="r"))
        (tmp_path / "gone.journal").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"mark": ["r"')
        async with ledger(lambda: SqliteDatabase(tmp_path / "ledger.db"), tmp_path) as later:
            assert await rows(later, "ending, completion_tokens") == [("cancelled", 25)]
        assert not (tmp_path / "gone.journal").exists()


@run_async
async def test_events_wait_for_their_receiver(tmp_path: Path) -> None:
    def refuse(events: Sequence[Any]) -> None:
        raise ConnectionRefusedError

    taken: list[Any] = []
    async with ledger(lambda: SqliteDatabase(tmp_path / "ledger.db"), tmp_path) as books:
        for _ in range(3):
            await (await books.open(reservation(tenant=ACME, region="eu"))).settle(settlement(5))
        with pytest.raises(ConnectionRefusedError):
            await export_batch(books, refuse)
        assert await export_batch(books, taken.extend) == 3
        assert await export_batch(books, taken.extend) == 0
        ids = {row[0] for row in await rows(books, "request_id")}
    assert {event["id"] for event in taken} == ids
    assert {(event["specversion"], event["source"], event["subject"]) for event in taken} == {
        ("1.0", "/argosy/eu", "acme")
    }


def test_an_export_target_that_is_none_is_told_so() -> None:
    for target in ("usage.jsonl", "file://host/path", "ftp://host/x", "https:///x"):
        with pytest.raises(ConfigurationError, match="ledger.export"):
            sink_of(target)
