"""The ledger's tables, in the SQL that SQLite and PostgreSQL share. Knows names and types; writes no rows."""

from __future__ import annotations

from cluster.errors import ConfigurationError
from cluster.ledger.database import Database

VERSION = 3
"""Counts changes of `TABLES` that need more than making what is missing."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)",
    # One row a request for ever. Open until `ending` is set.
    """CREATE TABLE IF NOT EXISTS requests (
        request_id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        subject TEXT NOT NULL,
        model TEXT NOT NULL,
        region TEXT NOT NULL,
        holder TEXT NOT NULL,
        idempotency_key TEXT,
        opened_at DOUBLE PRECISION NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        reserved_tokens BIGINT NOT NULL,
        charges TEXT NOT NULL,
        marked_tokens BIGINT NOT NULL DEFAULT 0,
        settled_at DOUBLE PRECISION,
        ending TEXT,
        cached_prompt_tokens BIGINT NOT NULL DEFAULT 0,
        completion_tokens BIGINT NOT NULL DEFAULT 0,
        attempts BIGINT NOT NULL DEFAULT 0,
        reasoning_tokens BIGINT NOT NULL DEFAULT 0,
        device_seconds DOUBLE PRECISION NOT NULL DEFAULT 0,
        generation BIGINT NOT NULL DEFAULT 0,
        resumable_until DOUBLE PRECISION NOT NULL DEFAULT 0
    )""",
    """CREATE UNIQUE INDEX IF NOT EXISTS requests_idempotency ON requests (tenant, idempotency_key)
        WHERE idempotency_key IS NOT NULL""",
    "CREATE INDEX IF NOT EXISTS requests_open ON requests (holder) WHERE ending IS NULL",
    "CREATE INDEX IF NOT EXISTS requests_time ON requests (tenant, opened_at)",
    # What a tenant has used of each window, reservations included.
    """CREATE TABLE IF NOT EXISTS windows (
        tenant TEXT NOT NULL,
        kind TEXT NOT NULL,
        bucket BIGINT NOT NULL,
        used BIGINT NOT NULL CHECK (used >= 0),
        PRIMARY KEY (tenant, kind, bucket)
    )""",
    # What regions were given of the windows of tenants at home here, which those windows count as used; and what this
    # region was given of others.
    """CREATE TABLE IF NOT EXISTS slices_given (
        tenant TEXT NOT NULL,
        kind TEXT NOT NULL,
        bucket BIGINT NOT NULL,
        region TEXT NOT NULL,
        granted BIGINT NOT NULL,
        version BIGINT NOT NULL,
        PRIMARY KEY (tenant, kind, bucket, region)
    )""",
    """CREATE TABLE IF NOT EXISTS slices_held (
        tenant TEXT NOT NULL,
        kind TEXT NOT NULL,
        bucket BIGINT NOT NULL,
        granted BIGINT NOT NULL,
        version BIGINT NOT NULL,
        PRIMARY KEY (tenant, kind, bucket)
    )""",
    # Routers that may have open rows. One whose `beats` stand still is dead.
    """CREATE TABLE IF NOT EXISTS holders (
        holder TEXT PRIMARY KEY,
        process TEXT NOT NULL,
        beats BIGINT NOT NULL
    )""",
    # Settled and not exported yet. What may still be resumed waits until then.
    """CREATE TABLE IF NOT EXISTS outbox (
        request_id TEXT PRIMARY KEY,
        due_at DOUBLE PRECISION NOT NULL DEFAULT 0
    )""",
    """CREATE TABLE IF NOT EXISTS tenants (
        tenant TEXT PRIMARY KEY,
        policy TEXT NOT NULL,
        disabled BIGINT NOT NULL,
        created_at DOUBLE PRECISION NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS api_keys (
        key_id TEXT PRIMARY KEY,
        hash TEXT NOT NULL,
        tenant TEXT NOT NULL REFERENCES tenants (tenant),
        label TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created_at DOUBLE PRECISION NOT NULL,
        expires_at DOUBLE PRECISION,
        revoked_at DOUBLE PRECISION
    )""",
    """CREATE TABLE IF NOT EXISTS audit (
        at DOUBLE PRECISION NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        target TEXT NOT NULL
    )""",
)


def create_tables(database: Database) -> None:
    """Make what is missing.

    Raises:
        ConfigurationError: the store was written by another version of the schema; nothing was changed.
        StoreUnavailableError: the store is gone.
    """
    database.begin()
    for statement in TABLES:
        database.execute(statement)
    found = _version(database)
    if found == VERSION:
        database.commit()
        return
    database.rollback()
    raise ConfigurationError(
        f"ledger: the store has schema version {found}, this program writes version {VERSION}; "
        "export and move the old store aside, or run the program that wrote it"
    )


def _version(database: Database) -> int:
    """The store's version, written if the store is new. 0: it holds requests and says no version."""
    rows = database.query("SELECT version FROM schema_version")
    if rows:
        return int(rows[0][0])
    if database.query("SELECT 1 FROM requests LIMIT 1"):
        return 0
    database.execute("INSERT INTO schema_version (version) VALUES (?)", (VERSION,))
    return VERSION
