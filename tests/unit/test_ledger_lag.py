"""What operators see of a ledger whose disk does not answer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from cluster.clock import SystemClock
from cluster.ledger.database import Database
from cluster.ledger.group_commit import GroupCommit
from cluster.ledger.journal import Journal
from tests.support.router_world import run_async


class StuckDatabase:
    """Commits nothing until it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def begin(self) -> None: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...

    def commit(self) -> None:
        assert self.go_on.wait(60)


@run_async
async def test_a_commit_that_hangs_shows_as_lag_and_a_queue(tmp_path: Path) -> None:
    database = StuckDatabase()
    commits = GroupCommit(lambda: _as_database(database), Journal(tmp_path / "j"), SystemClock())
    commits.start()
    try:
        assert (commits.lag_seconds, commits.num_waiting) == (0.0, 0)
        first = asyncio.ensure_future(commits.change(lambda _: None))
        async with asyncio.timeout(30):
            while not commits.lag_seconds:
                await asyncio.sleep(0.01)
        seen = commits.lag_seconds
        others = [asyncio.ensure_future(commits.change(lambda _: None)) for _ in range(3)]
        async with asyncio.timeout(30):
            while commits.num_waiting < 3 or commits.lag_seconds <= seen:
                await asyncio.sleep(0.01)
        database.go_on.set()
        await asyncio.gather(first, *others)
        assert (commits.lag_seconds, commits.num_waiting) == (0.0, 0)
    finally:
        database.go_on.set()
        await commits.close()


def _as_database(stuck: StuckDatabase) -> Database:
    return stuck  # type: ignore[return-value]
