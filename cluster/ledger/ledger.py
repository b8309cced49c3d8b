"""The ledger that a router writes: reserve, mark ahead, settle; and keeps house for routers that died.

Knows operations and time; no SQL, no streams, no clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cluster.clock import Clock
from cluster.errors import Reason, ServiceError
from cluster.ledger import holders
from cluster.ledger.database import Database, StoreBusyError
from cluster.ledger.group_commit import GroupCommit
from cluster.ledger.journal import Journal, read_journal
from cluster.ledger.operations import Mark, Open, Settle, rate_headers, settle_rows_of
from cluster.ledger.records import Allowance, Ending, Reservation, Settlement
from cluster.ledger.resumption import Resumed, resume
from cluster.ledger.schema import create_tables
from cluster.ledger.windows import Windows

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
OPEN_SECONDS = 15.0
"""How long a store that others hold is waited for at the start."""
BUSY_PAUSE_SECONDS = 0.05
JOURNAL_SUFFIX = ".journal"


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    """How a ledger writes."""

    holder: str
    """The router, unique for ever."""
    directory: Path
    """For journals; shared by the machine's routers."""
    lease_seconds: float = 10.0
    """A router that says nothing for so long is dead, and its rows are settled."""
    ahead_tokens: int = 32
    ahead_seconds: float = 0.05
    """A mark is ahead of what was accepted by what the stream makes in this time, and by no more than `ahead_tokens`:
    the most that a killed router's rows can say too much."""


class StoredLedger:
    """A ledger in a database, for one router process."""

    def __init__(self, connect: Callable[[], Database], clock: Clock, options: LedgerOptions) -> None:
        self.clock = clock
        self.options = options
        self._connect = connect
        self._watch = holders.Watch(options.lease_seconds)
        self._process = holders.process_name()
        self._commits: GroupCommit | None = None
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the store, settle what dead routers left, and keep doing so.

        Raises:
            StoreUnavailableError: the store cannot be opened.
            ConfigurationError: another version of the program wrote it.
        """
        self.options.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._tables_made()
        self._commits = GroupCommit(self._connect, Journal(self._journal_of(self.options.holder)), self.clock)
        self._commits.start()
        await self._keep_house()
        await self._replay_orphans()
        self._housekeeping = asyncio.create_task(self._keep_house_always())

    async def close(self) -> None:
        """Write what waits and leave. Rows that are still open are settled by the next router."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.gather(self._housekeeping, return_exceptions=True)
        with contextlib.suppress(ServiceError):
            await self.change(lambda database: self._bury(database, self.options.holder))
        await self._commit.close()

    async def open(self, reservation: Reservation) -> StoredRow:
        """Reserve and open the entry.

        Raises:
            ServiceError: a hard limit leaves no room, the idempotency key was used, or the store is gone.
        """
        operation = Open(reservation, self.options.holder, self.clock.wall())
        submitted = self._commit.submit(operation)
        try:
            allowances = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            # It may have been written already, and nobody else knows of it.
            submitted.add_done_callback(lambda done: self._give_back(done, reservation))
            raise
        return StoredRow(self, Resumed(reservation, 0, allowances=allowances))

    async def resume(self, reservation: Reservation, received: int, generation: int, begun_in: str) -> StoredRow:
        """Take over, or open again, the entry of a request that its client goes on with here.

        Args:
            reservation: as it was when the request was opened.
            received: tokens that the client has.
            generation: that the client last heard of.
            begun_in: region where the client last had the request.

        Raises:
            ServiceError: it cannot go on, a hard limit leaves no room for the rest, or the store is gone.
        """
        holder, now = self.options.holder, self.clock.wall()
        submitted = asyncio.ensure_future(
            self.change(lambda database: resume(database, reservation, holder, received, generation, now, begun_in))
        )
        try:
            taken = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(self._settle_unread)
            raise
        return StoredRow(self, taken)

    def submit(self, operation: Mark | Settle) -> asyncio.Future[object]:
        """Do it in the next commit; the future is done once it is on disk."""
        return self._commit.submit(operation)

    async def change(self, function: Callable[[Database], _Result]) -> _Result:
        """Run a function inside a transaction.

        Raises:
            ServiceError: the store is gone, or the function refused.
        """
        return await self._commit.change(function)

    @property
    def num_commits(self) -> int:
        return self._commit.num_commits

    @property
    def num_waiting(self) -> int:
        """Changes that wait for the disk."""
        return self._commit.num_waiting

    @property
    def lag_seconds(self) -> float:
        """How long the commit that runs has been running; 0 if none does."""
        return self._commit.lag_seconds

    @property
    def _commit(self) -> GroupCommit:
        assert self._commits is not None, "start it first"
        return self._commits

    async def _tables_made(self) -> None:
        """Several routers may find a store new at the same moment: one makes it, the others wait for that."""
        end = self.clock.monotonic() + OPEN_SECONDS
        while True:
            try:
                return await asyncio.to_thread(self._make_tables)
            except StoreBusyError:
                if self.clock.monotonic() >= end:
                    raise
            await self.clock.sleep(BUSY_PAUSE_SECONDS)

    def _make_tables(self) -> None:
        database = self._connect()
        try:
            create_tables(database)
        finally:
            database.close()

    def _give_back(self, done: asyncio.Future[object], reservation: Reservation) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        nothing = Settlement(Ending.CANCELLED, 0, 0, 0, 0)
        with contextlib.suppress(ServiceError):
            self._commit.submit(Settle(reservation.request_id, nothing, self.clock.wall()))

    def _settle_unread(self, done: asyncio.Future[Resumed]) -> None:
        """The client went away while its request was taken over: it keeps what it has."""
        if done.cancelled() or done.exception() is not None:
            return
        taken = done.result()
        used = taken.bill(Settlement(Ending.CANCELLED, 0, 0, taken.received, 0))
        with contextlib.suppress(ServiceError):
            self._commit.submit(Settle(taken.reservation.request_id, used, self.clock.wall(), taken.generation))

    async def _keep_house_always(self) -> None:
        while True:
            await self.clock.sleep(self.options.lease_seconds / 3)
            try:
                await self._keep_house()
            except ServiceError as error:
                log.warning("the ledger's housekeeping waits: %s", error)

    async def _keep_house(self) -> None:
        holder, process = self.options.holder, self._process
        everybody = await self.change(lambda database: holders.beat(database, holder, process))
        others = [entry for entry in everybody if entry[0] != holder]
        for dead in self._watch.dead(others, self.clock.monotonic()):
            rows = await self.change(lambda database, dead=dead: self._bury(database, dead))  # type: ignore[misc]
            self._journal_of(dead).unlink(missing_ok=True)
            log.warning("%s is dead: settled %d rows that it left open", dead, rows)

    def _bury(self, database: Database, dead: str) -> int:
        # What it journalled comes first: it may hold later marks than the rows.
        windows = Windows(database)
        for operation in read_journal(self._journal_of(dead)):
            operation.replay(windows)
        settled = settle_rows_of(windows, dead, self.clock.wall())
        windows.flush()
        return settled

    async def _replay_orphans(self) -> None:
        """Take in journals of routers that were forgotten before their journals were found."""
        known = {row[0] for row in await self.change(lambda database: database.query("SELECT holder FROM holders"))}
        for path in self.options.directory.glob(f"*{JOURNAL_SUFFIX}"):
            if path.stem not in known:
                await self.change(lambda database, dead=path.stem: self._bury(database, dead))  # type: ignore[misc]
                path.unlink(missing_ok=True)

    def _journal_of(self, holder: str) -> Path:
        return self.options.directory / f"{holder}{JOURNAL_SUFFIX}"


class StoredRow:
    """One request's entry."""

    __slots__ = ("_accepted", "_entry", "_ledger", "_mark", "_marked_at")

    def __init__(self, ledger: StoredLedger, entry: Resumed) -> None:
        self._ledger = ledger
        self._entry = entry
        self._accepted = entry.received
        self._mark = entry.received if entry.elsewhere else entry.marked
        self._marked_at = (self._accepted, ledger.clock.monotonic())

    @property
    def generation(self) -> int:
        """How often the request was resumed."""
        return self._entry.generation

    @property
    def allowances(self) -> tuple[Allowance, ...]:
        """What the tenant's limits leave."""
        return self._entry.allowances

    @property
    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` for the trailing metadata."""
        return rate_headers(self.allowances)

    def accept(self, tokens: int) -> Awaitable[object] | None:
        """Cover `tokens` more completion tokens: None if a mark covers them, else what to await before they are sent.

        Raises:
            ServiceError: they are more than what was reserved.
        """
        self._accepted += tokens
        if self._accepted <= self._mark:
            return None
        entry = self._entry
        most = entry.reservation.max_completion_tokens
        if self._accepted > most:
            raise ServiceError(Reason.QUOTA_EXCEEDED)
        options, now = self._ledger.options, self._ledger.clock.monotonic()
        accepted_then, then = self._marked_at
        pace = (self._accepted - accepted_then) / max(now - then, 1e-3)
        ahead = min(int(pace * options.ahead_seconds), options.ahead_tokens)
        self._mark, self._marked_at = min(self._accepted + ahead, most), (self._accepted, now)
        here = self._mark - entry.received if entry.elsewhere else self._mark
        return self._ledger.submit(Mark(entry.reservation.request_id, here, entry.generation))

    async def settle(self, settlement: Settlement) -> None:
        """Close the entry and give back what was reserved and not used; returns once that is on disk."""
        entry = self._entry
        used = entry.bill(settlement) if entry.generation else settlement
        now = self._ledger.clock.wall()
        await self._ledger.submit(Settle(entry.reservation.request_id, used, now, entry.generation))
