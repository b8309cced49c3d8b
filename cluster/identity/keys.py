"""API keys: how they look, how they are made and stored. Knows the secret that hashes are keyed with; no callers.

A key is `argosy_ID_SECRET`. ID finds its row; of the whole only HMAC-SHA256 under the server's secret is stored, so a
copy of the database opens nothing and tests no guesses.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigurationError
from cluster.identity.principal import Scope
from cluster.ids import TenantId
from cluster.ledger.database import Database

SECRET_FILE = "keys.secret"  # noqa: S105 (a name, not a secret)
"""Beside the ledger. Without it no key can be checked; with it and the database, guesses can be."""
_PATTERN = re.compile(r"argosy_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the database has it. Times are Unix seconds."""

    key_id: str
    hash: str
    tenant: TenantId
    label: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    def is_in_force(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_key() -> tuple[str, str]:
    """(id, whole key): 64 bits to find it by, 256 random bits to know it by."""
    key_id = secrets.token_hex(8)
    return key_id, f"argosy_{key_id}_{secrets.token_urlsafe(32)}"


def key_id_of(token: str) -> str | None:
    """The id in a key, None if it is none."""
    match = _PATTERN.fullmatch(token)
    return match.group(1) if match else None


def keyed_hash(secret: bytes, token: str) -> str:
    return hmac.new(secret, token.encode(), hashlib.sha256).hexdigest()


def read_secret(path: Path) -> bytes:
    """The server's secret, made at first use: 32 bytes, mode 0600.

    Raises:
        ConfigurationError: it cannot be read or made, or others can read it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Linked into place whole: of two routers that start together both read the same secret.
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        if not path.exists():
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(descriptor, secrets.token_bytes(32))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path}: others can read it; chmod 600 {path}")
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    if len(secret) < 32:
        raise ConfigurationError(f"{path}: holds {len(secret)} bytes; a secret has 32 or more")
    return secret


_COLUMNS = "key_id, hash, tenant, label, scopes, created_at, expires_at, revoked_at"


def insert_key(database: Database, key: StoredKey) -> None:
    scopes = " ".join(sorted(scope.value for scope in key.scopes))
    values = (key.key_id, key.hash, key.tenant, key.label, scopes, key.created_at, key.expires_at, key.revoked_at)
    database.execute(f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608


def find_keys(database: Database, column: str = "", value: str = "") -> list[StoredKey]:
    """Keys by `key_id` or `tenant`, or all; the newest first."""
    assert column in {"", "key_id", "tenant"}
    where, parameters = (f"WHERE {column} = ?", (value,)) if column else ("", ())
    statement = f"SELECT {_COLUMNS} FROM api_keys {where} ORDER BY created_at DESC, key_id"  # noqa: S608
    return [
        StoredKey(row[0], row[1], TenantId(row[2]), row[3], frozenset(map(Scope, row[4].split())), *row[5:])
        for row in database.query(statement, parameters)
    ]
