"""What the ledger asks of a database, and SQLite's answer to it. Knows connections and transactions; no tables.

Statements are written once, with `?` for parameters, in the SQL that SQLite and PostgreSQL share.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

Row = Sequence[Any]

BUSY_SECONDS = 1.0
"""How long another process's commit is waited for."""


CACHE_KIB = 64 * 1024
CHECKPOINT_PAGES = 4000
"""Of 4 KiB: the write-ahead log grows to 16 MiB before it is copied."""


class StoreUnavailableError(Exception):
    """The database cannot be reached or written now; the same may succeed later."""


class StoreBusyError(StoreUnavailableError):
    """Another process holds the database; it will be free soon."""


class Database(Protocol):
    """One connection, used by one thread. Everything raises `StoreUnavailableError` if the store is gone."""

    def begin(self) -> None:
        """Start a transaction that is alone: no other connection's writes come between its reads and its writes."""

    def commit(self) -> None:
        """Return once what was written survives the loss of power."""

    def rollback(self) -> None: ...

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> int:
        """Run a statement; returns the number of rows changed."""

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run a statement that returns rows."""

    def close(self) -> None: ...


class SqliteDatabase:
    """A file in WAL mode, synchronous = FULL: a commit is on disk when it returns. Any number of local processes."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            StoreUnavailableError: the file cannot be opened.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made by us, so that nobody else can read it whatever the umask.
            path.touch(mode=0o600, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            # Ids are random, so requests touch pages all over the indexes: keep those of millions of rows at hand, and
            # copy a page that many commits have changed into the file once.
            self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        except (sqlite3.Error, OSError) as error:
            raise _unavailable(error) from None

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self.execute("ROLLBACK")

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> int:
        try:
            return self._connection.execute(statement, parameters).rowcount
        except sqlite3.OperationalError as error:
            raise _unavailable(error) from None

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.OperationalError as error:
            raise _unavailable(error) from None

    def close(self) -> None:
        self._connection.close()


def _unavailable(error: Exception) -> StoreUnavailableError:
    is_busy = isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return (StoreBusyError if is_busy else StoreUnavailableError)(str(error))
