"""What can be done to the ledger, each an atomic change inside a transaction. Knows tables; no threads, no time.

Every operation may run twice: what it did the first time it leaves alone the second. That is what lets a journal be
replayed without asking how far it got.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cluster.errors import QuotaViolation, Reason, ServiceError
from cluster.ids import RequestId
from cluster.ledger.database import Database
from cluster.ledger.records import Allowance, Ending, Limits, Reservation, Settlement, Window

_INSERT = """INSERT INTO requests
    (request_id, tenant, subject, model, region, holder, idempotency_key, opened_at, prompt_tokens, reserved_tokens,
     charges) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_CHARGE = """INSERT INTO windows (tenant, kind, bucket, used) VALUES (?, ?, ?, ?)
    ON CONFLICT (tenant, kind, bucket) DO UPDATE SET used = windows.used + excluded.used"""
_REFUND = "UPDATE windows SET used = used - ? WHERE tenant = ? AND kind = ? AND bucket = ?"
_SETTLE = """UPDATE requests SET ending = ?, settled_at = ?, prompt_tokens = ?, cached_prompt_tokens = ?,
    completion_tokens = ?, attempts = ? WHERE request_id = ? AND ending IS NULL
    RETURNING tenant, reserved_tokens, charges"""


@dataclass(frozen=True, slots=True)
class Open:
    """Reserve, and open the row. Nothing is written if it is refused."""

    reservation: Reservation
    holder: str
    now: float

    def apply(self, database: Database) -> tuple[Allowance, ...]:
        """
        Returns:
            What the limits leave.

        Raises:
            ServiceError: a hard limit leaves no room, or the idempotency key was used before.
        """
        ask = self.reservation
        if ask.idempotency_key is not None:
            self._refuse_duplicate(database, ask)
        allowances = tuple(self._check(database, window, limit) for window, limit in ask.limits)
        charges = {window.value: window.bucket(self.now) for window, _ in ask.limits}
        if self._insert(database, ask.idempotency_key, charges):
            for kind, bucket in charges.items():
                database.execute(_CHARGE, (ask.tenant, kind, bucket, ask.cost(Window(kind))))
        return allowances

    def replay(self, database: Database) -> None:
        """Enter what was already let in while the store was gone: nothing is refused any more."""
        charges = {window.value: window.bucket(self.now) for window, _ in self.reservation.limits}
        ask = self.reservation
        if self._insert(database, ask.idempotency_key, charges) or self._insert(database, None, charges):
            for kind, bucket in charges.items():
                database.execute(_CHARGE, (ask.tenant, kind, bucket, ask.cost(Window(kind))))

    def _insert(self, database: Database, key: str | None, charges: dict[str, int]) -> int:
        ask = self.reservation
        values = (ask.request_id, ask.tenant, ask.subject, ask.model, ask.region, self.holder, key, self.now)
        return database.execute(_INSERT, (*values, ask.prompt_tokens, ask.tokens, json.dumps(charges)))

    def _refuse_duplicate(self, database: Database, ask: Reservation) -> None:
        statement = "SELECT request_id FROM requests WHERE tenant = ? AND idempotency_key = ?"
        if rows := database.query(statement, (ask.tenant, ask.idempotency_key)):
            raise ServiceError(Reason.DUPLICATE, metadata={"request_id": str(rows[0][0])})

    def _check(self, database: Database, window: Window, limit: int) -> Allowance:
        ask = self.reservation
        statement = "SELECT used FROM windows WHERE tenant = ? AND kind = ? AND bucket = ?"
        rows = database.query(statement, (ask.tenant, window.value, window.bucket(self.now)))
        used = rows[0][0] if rows else 0
        after = used + ask.cost(window)
        reset = window.seconds_left(self.now)
        if after > limit and ask.limits.hard:
            text = f"{window.value}: {used} of {limit} used or reserved, the request may need {ask.cost(window)}"
            raise ServiceError(
                Reason.QUOTA_EXCEEDED,
                quotas=(QuotaViolation(f"tenant:{ask.tenant}", text),),
                retry_after=reset,
                trailers=rate_headers((Allowance(window, limit, max(0, limit - used), reset),)),
            )
        return Allowance(window, limit, max(0, limit - after), reset)


@dataclass(frozen=True, slots=True)
class Mark:
    """Write ahead: up to so many completion tokens may have been accepted when this is all that is left."""

    request_id: RequestId
    tokens: int

    def apply(self, database: Database) -> None:
        """
        Raises:
            ServiceError: somebody else took this router for dead and settled the row.
        """
        statement = "UPDATE requests SET marked_tokens = ? WHERE request_id = ? AND ending IS NULL"
        if not database.execute(statement, (self.tokens, self.request_id)):
            raise ServiceError(Reason.RESERVATION_LOST)

    def replay(self, database: Database) -> None:
        """As `apply`; a row settled in between stays as it is."""
        statement = "UPDATE requests SET marked_tokens = ? WHERE request_id = ? AND ending IS NULL"
        database.execute(statement, (self.tokens, self.request_id))


@dataclass(frozen=True, slots=True)
class Settle:
    """Close the row, give back what was reserved and not used, queue the event. A settled row stays as it is."""

    request_id: RequestId
    settlement: Settlement
    now: float

    def apply(self, database: Database) -> bool:
        """Returns: False if the row had been settled before."""
        used = self.settlement
        values = (used.ending.value, self.now, used.prompt_tokens, used.cached_prompt_tokens)
        rows = database.query(_SETTLE, (*values, used.completion_tokens, used.attempts, self.request_id))
        if not rows:
            return False
        tenant, reserved, charges = rows[0]
        for kind, bucket in json.loads(charges).items():
            window = Window(kind)
            back = reserved - used.tokens if window.counts_tokens else int(window is Window.CONCURRENT_STREAMS)
            if back:
                database.execute(_REFUND, (back, tenant, kind, bucket))
        database.execute("INSERT INTO outbox (request_id, settled_at) VALUES (?, ?)", (self.request_id, self.now))
        return True

    def replay(self, database: Database) -> None:
        self.apply(database)


Operation = Open | Mark | Settle


def settle_rows_of(database: Database, holder: str, now: float) -> int:
    """Settle what a dead router left open, from the marks; forget the router. Returns the number of rows.

    A prompt counts if at least one token was marked: before that the request cost its client nothing.
    """
    statement = "SELECT request_id, prompt_tokens, marked_tokens FROM requests WHERE holder = ? AND ending IS NULL"
    rows = database.query(statement, (holder,))
    for request_id, prompt_tokens, marked in rows:
        settlement = Settlement(Ending.CRASHED, prompt_tokens if marked else 0, 0, marked)
        Settle(RequestId(request_id), settlement, now).apply(database)
    database.execute("DELETE FROM holders WHERE holder = ?", (holder,))
    return len(rows)


def rate_headers(allowances: tuple[Allowance, ...]) -> dict[str, str]:
    """`x-ratelimit-*` as trailing metadata: limit, what remains, seconds until the window ends."""
    headers = {}
    for allowance in allowances:
        name = allowance.window.value.replace("_", "-")
        headers[f"x-ratelimit-limit-{name}"] = str(allowance.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining)
        headers[f"x-ratelimit-reset-{name}"] = f"{allowance.reset_seconds:.0f}"
    return headers


def to_json(operation: Operation) -> dict[str, Any]:
    """For a journal."""
    if isinstance(operation, Mark):
        return {"mark": [operation.request_id, operation.tokens]}
    if isinstance(operation, Settle):
        used = operation.settlement
        numbers = [used.prompt_tokens, used.cached_prompt_tokens, used.completion_tokens, used.attempts]
        return {"settle": [operation.request_id, operation.now, used.ending.value, *numbers]}
    ask = operation.reservation
    names = ("request_id", "model", "prompt_tokens", "max_completion_tokens", "tenant", "subject", "region")
    fields = {name: getattr(ask, name) for name in (*names, "idempotency_key")}
    limits = {window.value: limit for window, limit in ask.limits} | {"hard": ask.limits.hard}
    return {"open": fields, "limits": limits, "holder": operation.holder, "now": operation.now}


def from_json(entry: dict[str, Any]) -> Operation:
    """The inverse of `to_json`."""
    if "mark" in entry:
        return Mark(*entry["mark"])
    if "settle" in entry:
        request_id, now, ending, *numbers = entry["settle"]
        return Settle(request_id, Settlement(Ending(ending), *numbers), now)
    return Open(Reservation(**entry["open"], limits=Limits(**entry["limits"])), entry["holder"], entry["now"])
