"""Slices of a tenant's limits, given by the store of its home region to those of others. Knows tables; no network.

A slice is charged to the home's window when it is given, and is all that the other region may use: requests are let in
there without asking anybody, and yet no hard limit is ever exceeded, however many regions there are and whatever is
lost between them. The price is what slices hold and do not use: at most `1/SHARE` of a limit a region, or the largest
request that was asked for there.

What makes it safe is one order: the home gives before a region takes, and a region lets go before the home takes back.
Every question has a version, the home heeds only newer ones, and a region heeds only the answer to its latest; so what
a region believes to hold is never more than what it was given. (Escrow: P. O'Neil, ACM TODS 11(4), 1986.)
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.ledger.database import Database
from cluster.ledger.records import Window
from cluster.ledger.windows import Windows

SHARE = 8
"""A region holds what it uses and this part of the limit besides."""
UNLIMITED = 2**62

_GIVEN = "SELECT granted, version FROM slices_given WHERE tenant = ? AND kind = ? AND bucket = ? AND region = ?"
_GIVE = """INSERT INTO slices_given (tenant, kind, bucket, region, granted, version) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, kind, bucket, region) DO UPDATE SET granted = excluded.granted, version = excluded.version"""
_HELD = "SELECT granted, version FROM slices_held WHERE tenant = ? AND kind = ? AND bucket = ?"
_HOLD = """INSERT INTO slices_held (tenant, kind, bucket, granted, version) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (tenant, kind, bucket) DO UPDATE SET granted = excluded.granted, version = excluded.version"""


@dataclass(frozen=True, slots=True)
class Ask:
    """A region's question about one window."""

    tenant: str
    window: Window
    bucket: int
    version: int
    wanted: int
    used: int

    @property
    def name(self) -> tuple[str, str, int]:
        return self.tenant, self.window.kind, self.bucket


@dataclass(frozen=True, slots=True)
class Grant:
    """The home's answer."""

    granted: int
    version: int


def wanted_slice(limit: int, used: int, granted: int, largest_refused: int = 0, *, is_idle: bool = False) -> int:
    """What a region should hold: what it uses and room for what comes; what it has, if that is near enough.

    Args:
        largest_refused: cost of the largest request that found no room.
        is_idle: nobody has asked for a while: nothing beyond what is used.
    """
    if is_idle:
        return min(granted, used)
    room = max(1, limit // SHARE)
    need = min(limit, used + max(room, largest_refused))
    is_near = used + max((room + 1) // 2, largest_refused) <= granted <= need + room
    return granted if is_near else need


def prepare(
    database: Database,
    tenant: str,
    window: Window,
    bucket: int,
    limit: int,
    largest_refused: int = 0,
    *,
    is_idle: bool = False,
) -> Ask | None:
    """At the region: the question to ask, if any. What it gives back is given up here and now."""
    name = (tenant, window.kind, bucket)
    granted, version = _held(database, name)
    used = Windows(database).used(name)
    wanted = wanted_slice(limit, used, granted, largest_refused, is_idle=is_idle)
    if wanted == granted:
        return None
    database.execute(_HOLD, (*name, min(granted, max(wanted, used)), version + 1))
    return Ask(tenant, window, bucket, version + 1, max(wanted, used), used)


def give(database: Database, ask: Ask, region: str, limit: int) -> Grant:
    """At the home: change what a region holds, as far as the limit has room."""
    rows = database.query(_GIVEN, (*ask.name, region))
    granted, version = rows[0] if rows else (0, 0)
    if ask.version <= version:
        return Grant(granted, version)
    windows = Windows(database)
    free = max(0, limit - windows.used(ask.name))
    after = min(max(ask.wanted, ask.used), granted + free)
    windows.add(ask.name, after - granted)
    windows.flush()
    database.execute(_GIVE, (*ask.name, region, after, ask.version))
    return Grant(after, ask.version)


def take(database: Database, ask: Ask, grant: Grant) -> None:
    """At the region: hold what was given, if no later question was asked since."""
    if grant.version == ask.version == _held(database, ask.name)[1]:
        database.execute(_HOLD, (*ask.name, grant.granted, grant.version))


def _held(database: Database, name: tuple[str, str, int]) -> tuple[int, int]:
    rows = database.query(_HELD, name)
    return (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)
