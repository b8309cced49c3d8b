"""PostgreSQL's answer to what the ledger asks of a database, for routers on several machines. Knows no tables.

Every transaction takes one advisory lock, so that it is alone as it is in SQLite: routers take turns, each with
one group commit.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from cluster.ledger.database import BUSY_SECONDS, Row, StoreUnavailableError

_LOCK = 0x6172676F7379
"""`argosy`: which of the database's advisory locks is ours."""
_GONE = (psycopg.OperationalError, psycopg.InterfaceError)


class PostgresDatabase:
    """A connection to a server. A commit is on its disk when it returns (`synchronous_commit`)."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: `postgresql://user@host/database`; a password comes from $PGPASSWORD or a password file.

        Raises:
            StoreUnavailableError: the server does not answer, or refuses.
        """
        # A server that hangs must not hold streams up for longer than one that refuses.
        patience = int(1000 * BUSY_SECONDS)
        settings = {
            "connect_timeout": max(2, int(BUSY_SECONDS)),
            "tcp_user_timeout": patience,
            "application_name": "argosy",
        }
        try:
            self._connection = psycopg.connect(url, autocommit=True, **settings)  # type: ignore[arg-type]
            self.execute(f"SET statement_timeout = {patience}")
            self.execute("SET synchronous_commit = on")
        except _GONE as error:
            raise StoreUnavailableError(_first_line(error)) from None

    def begin(self) -> None:
        self.execute("BEGIN")
        self.query("SELECT pg_advisory_xact_lock(?)", (_LOCK,))

    def commit(self) -> None:
        self.execute("COMMIT")

    def rollback(self) -> None:
        self.execute("ROLLBACK")

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> int:
        return self._run(statement, parameters).rowcount

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        return list(self._run(statement, parameters).fetchall())

    def close(self) -> None:
        self._connection.close()

    def _run(self, statement: str, parameters: Sequence[object]) -> psycopg.Cursor[tuple[object, ...]]:
        try:
            text = statement.replace("?", "%s") if parameters else statement
            return self._connection.execute(text.encode(), parameters or None)
        except _GONE as error:
            raise StoreUnavailableError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
