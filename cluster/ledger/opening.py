"""From the configuration to a ledger that runs. Knows every kind of store; writes nothing itself."""

from __future__ import annotations

from collections.abc import Callable

from cluster.clock import Clock
from cluster.config import ArgosyConfig
from cluster.errors import ConfigurationError
from cluster.ledger.database import Database, SqliteDatabase, StoreUnavailableError
from cluster.ledger.ledger import LedgerOptions, StoredLedger


def connector(config: ArgosyConfig) -> Callable[[], Database]:
    """What opens a connection to the configured store.

    Raises:
        ConfigurationError: its driver is not installed.
    """
    if (url := config.ledger.url) is None:
        path = config.ledger_path
        return lambda: SqliteDatabase(path)
    try:
        from cluster.ledger.postgres import PostgresDatabase
    except ImportError:
        raise ConfigurationError("ledger.store: postgres needs psycopg; pip install 'argosy[postgres]'") from None
    return lambda: PostgresDatabase(url)


async def open_ledger(config: ArgosyConfig, clock: Clock, holder: str) -> StoredLedger:
    """Open the configured ledger for the router `holder`.

    Raises:
        ConfigurationError: the store cannot be opened.
    """
    options = LedgerOptions(holder, config.ledger_path.parent, config.ledger.lease_seconds)
    ledger = StoredLedger(connector(config), clock, options)
    try:
        await ledger.start()
    except StoreUnavailableError as error:
        raise ConfigurationError(f"ledger: the store cannot be opened: {error}") from None
    return ledger
