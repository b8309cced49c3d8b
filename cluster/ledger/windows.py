"""What tenants have used of their windows, read and written once a transaction. Knows one table; no limits.

Hundreds of requests of one transaction touch the same few windows: they meet here, in memory, and each window costs
one read and one write however many they are.
"""

from __future__ import annotations

from cluster.ledger.database import Database

_SELECT = "SELECT used FROM windows WHERE tenant = ? AND kind = ? AND bucket = ?"
_SELECT_HELD = "SELECT granted FROM slices_held WHERE tenant = ? AND kind = ? AND bucket = ?"
_UPSERT = """INSERT INTO windows (tenant, kind, bucket, used) VALUES (?, ?, ?, ?)
    ON CONFLICT (tenant, kind, bucket) DO UPDATE SET used = excluded.used"""

Name = tuple[str, str, int]
"""Tenant, kind, bucket."""


class Windows:
    """The windows that one transaction touches. The transaction is alone, so what was read stays true."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._used: dict[Name, int] = {}
        self._held: dict[Name, int] = {}
        self._changed: set[Name] = set()

    def used(self, name: Name) -> int:
        """Used or reserved, so far."""
        used = self._used.get(name)
        if used is None:
            rows = self.database.query(_SELECT, name)
            used = self._used[name] = rows[0][0] if rows else 0
        return used

    def held(self, name: Name) -> int:
        """What this region was given of a window that is kept elsewhere."""
        held = self._held.get(name)
        if held is None:
            rows = self.database.query(_SELECT_HELD, name)
            held = self._held[name] = rows[0][0] if rows else 0
        return held

    def add(self, name: Name, amount: int) -> None:
        """Charge it, or give back if negative."""
        self._used[name] = self.used(name) + amount
        self._changed.add(name)

    def flush(self) -> None:
        """Write what changed and forget the rest: others may write to the table now."""
        for name in sorted(self._changed):
            self.database.execute(_UPSERT, (*name, self._used[name]))
        self._used.clear()
        self._held.clear()
        self._changed.clear()
