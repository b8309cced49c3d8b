"""One thread, one connection: whatever waits becomes one transaction, and one sync of the disk. Knows no tables.

While a commit runs, the next operations gather; so a lone request waits for one commit, and a thousand share a few.
If the store is gone, what may go on without it goes to the journal, which is replayed before anything else.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.clock import Clock
from cluster.errors import Reason, ServiceError
from cluster.ledger.database import Database, StoreUnavailableError
from cluster.ledger.journal import Journal
from cluster.ledger.operations import Open, Operation
from cluster.ledger.windows import Windows

log = logging.getLogger(__name__)

MAX_BATCH = 2048
"""Operations in one transaction."""
RETRY_SECONDS = 0.5
"""How often a store that is gone is looked for; between looks nobody waits for it."""

Change = Callable[[Database], Any]
_Result = TypeVar("_Result")


class _Entry:
    """Something to do, and who waits for it."""

    __slots__ = ("future", "operation", "outcome")

    def __init__(self, operation: Operation | Change, future: asyncio.Future[Any]) -> None:
        self.operation = operation
        self.future = future
        self.outcome: Any = None

    def apply(self, windows: Windows) -> None:
        operation = self.operation
        try:
            if isinstance(operation, Operation):
                self.outcome = operation.apply(windows)
            else:
                windows.flush()
                self.outcome = operation(windows.database)
        except ServiceError as refusal:
            self.outcome = refusal

    def answer(self) -> None:
        if self.future.done():
            return
        if isinstance(self.outcome, BaseException):
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.outcome)


class GroupCommit:
    """Hands operations of an event loop to the thread, and results back."""

    def __init__(self, connect: Callable[[], Database], journal: Journal, clock: Clock) -> None:
        self._connect = connect
        self._journal = journal
        self._clock = clock
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._database: Database | None = None
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._is_closed = False
        self.num_commits = 0
        self._committing_since: float | None = None

    def start(self) -> None:
        """
        Raises:
            StoreUnavailableError: the store cannot be opened.
        """
        self._database = self._connect()
        self._thread.start()

    async def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        self._is_closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def num_waiting(self) -> int:
        """Operations that no commit has taken yet."""
        return self._queue.qsize()

    @property
    def lag_seconds(self) -> float:
        """How long the commit that runs has been running: whatever waits has waited no longer than twice that."""
        since = self._committing_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        """Do it in the next commit; the future is done once it is on disk."""
        return self._put(operation)

    async def change(self, function: Callable[[Database], _Result]) -> _Result:
        """Run a function inside the next transaction.

        Raises:
            ServiceError: the store is gone, or the function refused.
        """
        result: _Result = await self._put(function)
        return result

    def _put(self, operation: Operation | Change) -> asyncio.Future[Any]:
        if self._is_closed:
            raise ServiceError(Reason.SHUTTING_DOWN)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(_Entry(operation, future))
        return future

    def _run(self) -> None:
        is_open = True
        while is_open:
            entries: list[_Entry] = []
            entry = self._queue.get()
            while True:
                if entry is None:
                    is_open = False
                    break
                entries.append(entry)
                if len(entries) >= MAX_BATCH or self._queue.empty():
                    break
                entry = self._queue.get()
            if entries:
                self._committing_since = self._clock.monotonic()
                self._commit(entries)
                self._committing_since = None
                self._hand_back(entries)
        if self._database is not None:
            self._database.close()

    def _hand_back(self, entries: list[_Entry]) -> None:
        def answer() -> None:
            for entry in entries:
                entry.answer()

        try:
            self._loop.call_soon_threadsafe(answer)
        except RuntimeError:
            log.debug("the event loop ended before %d results", len(entries))

    def _commit(self, entries: list[_Entry]) -> None:
        if self._clock.monotonic() < self._retry_at:
            return self._do_without(entries)
        try:
            self._transact(entries)
        except StoreUnavailableError as error:
            if not self._retry_at:
                log.error("the ledger's store is gone: %s", error)
            self._abandon()
            self._retry_at = self._clock.monotonic() + RETRY_SECONDS
            self._do_without(entries)
        except Exception as error:
            self._abandon()
            if len(entries) == 1:
                log.exception("a change of the ledger failed")
                entries[0].outcome = error
                return None
            # One of them is at fault: the others must not suffer for it.
            for entry in entries:
                self._commit([entry])
        return None

    def _transact(self, entries: list[_Entry]) -> None:
        if self._database is None:
            self._database = self._connect()
        database = self._database
        database.begin()
        windows = Windows(database)
        if not self._journal.is_empty:
            for operation in self._journal.read():
                operation.replay(windows)
        for entry in entries:
            entry.apply(windows)
        windows.flush()
        database.commit()
        self.num_commits += 1
        if not self._journal.is_empty:
            self._journal.clear()
        if self._retry_at:
            log.warning("the ledger's store is back")
            self._retry_at = 0.0

    def _abandon(self) -> None:
        """Forget the connection: whatever state it is in, a new one has none."""
        database, self._database = self._database, None
        if database is None:
            return
        try:
            database.rollback()
            database.close()
        except StoreUnavailableError as error:
            log.debug("closing the store: %s", error)

    def _do_without(self, entries: list[_Entry]) -> None:
        journalled: list[Operation] = []
        for entry in entries:
            operation = entry.operation
            if not isinstance(operation, Operation) or (
                isinstance(operation, Open) and operation.reservation.limits.hard
            ):
                entry.outcome = ServiceError(Reason.LEDGER_UNAVAILABLE, retry_after=RETRY_SECONDS)
            else:
                journalled.append(operation)
                entry.outcome = () if isinstance(operation, Open) else None
        if not journalled:
            return
        try:
            self._journal.append(journalled)
        except OSError as error:
            log.error("the ledger's journal cannot be written: %s", error)
            for entry in entries:
                if isinstance(entry.operation, Operation):
                    entry.outcome = ServiceError(Reason.LEDGER_UNAVAILABLE, retry_after=RETRY_SECONDS)
