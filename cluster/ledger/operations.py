"""What can be done to the ledger, each an atomic change inside a transaction. Knows tables; no threads, no time.

Every operation may run twice: what it did the first time it leaves alone the second. That is what lets a journal be
replayed without asking how far it got.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from cluster.errors import QuotaViolation, Reason, ServiceError
from cluster.ids import RequestId
from cluster.ledger.database import Database
from cluster.ledger.records import Allowance, Ending, Limits, Reservation, Settlement, Window
from cluster.ledger.windows import Windows

SLICE_SECONDS = 1.0
"""When to try again where a region's slice leaves no room: by then it may be larger."""

_INSERT = """INSERT INTO requests
    (request_id, tenant, subject, model, region, holder, idempotency_key, opened_at, prompt_tokens, reserved_tokens,
     charges, resumable_until, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_SETTLE = """UPDATE requests SET ending = ?, settled_at = ?, prompt_tokens = ?, cached_prompt_tokens = ?,
    completion_tokens = ?, attempts = ?, reasoning_tokens = ?, device_seconds = device_seconds + ?
    WHERE request_id = ? AND generation = ? AND ending IS NULL
    RETURNING tenant, reserved_tokens, charges, resumable_until"""
_MARK = "UPDATE requests SET marked_tokens = ? WHERE request_id = ? AND generation = ? AND ending IS NULL"


@dataclass(frozen=True, slots=True)
class Open:
    """Reserve, and open the row. Nothing is written if it is refused."""

    reservation: Reservation
    holder: str
    now: float
    generation: int = 0
    """Above 0, the request was begun where this ledger does not see."""

    def apply(self, windows: Windows) -> tuple[Allowance, ...]:
        """
        Returns:
            What the limits leave.

        Raises:
            ServiceError: a hard limit leaves no room, or the idempotency key was used before.
        """
        ask = self.reservation
        if ask.idempotency_key is not None:
            self._refuse_duplicate(windows.database)
        allowances = tuple(check_limit(windows, ask, window, limit, self.now) for window, limit in ask.limits)
        self._enter(windows, ask.idempotency_key)
        return allowances

    def replay(self, windows: Windows) -> None:
        """Enter what was already let in while the store was gone: nothing is refused any more."""
        if not self._enter(windows, self.reservation.idempotency_key):
            self._enter(windows, None)

    def _enter(self, windows: Windows, key: str | None) -> bool:
        """Write the row and charge its windows; False if there is such a row, or the key was used."""
        ask = self.reservation
        charges = tuple((window, window.bucket(self.now)) for window, _ in ask.limits)
        values = (ask.request_id, ask.tenant, ask.subject, ask.model, ask.region, self.holder, key, self.now)
        more = (ask.prompt_tokens, ask.tokens, _charges_text(charges), ask.resumable_until, self.generation)
        is_new = windows.database.execute(_INSERT, (*values, *more))
        if is_new:
            for window, bucket in charges:
                windows.add((ask.tenant, window.kind, bucket), ask.cost(window))
        return bool(is_new)

    def _refuse_duplicate(self, database: Database) -> None:
        ask = self.reservation
        statement = "SELECT request_id FROM requests WHERE tenant = ? AND idempotency_key = ?"
        if rows := database.query(statement, (ask.tenant, ask.idempotency_key)):
            raise ServiceError(Reason.DUPLICATE, metadata={"request_id": str(rows[0][0])})


def check_limit(
    windows: Windows, ask: Reservation, window: Window, limit: int, now: float, cost: int | None = None
) -> Allowance:
    """What a limit leaves after a charge of `cost`, by default the reservation's.

    Raises:
        ServiceError: it is a hard limit and leaves no room.
    """
    cost = ask.cost(window) if cost is None else cost
    name = (ask.tenant, window.kind, window.bucket(now))
    used = windows.used(name)
    after = used + cost
    reset = window.seconds_left(now)
    room = windows.held(name) if ask.home and ask.limits.hard else limit
    if after > room and ask.limits.hard:
        text = f"{window.kind}: {used} of {room} used or reserved, the request may need {cost}"
        if ask.home:
            text += f" (this region's slice of {limit})"
            reset = min(reset, SLICE_SECONDS)
        raise ServiceError(
            Reason.QUOTA_EXCEEDED,
            quotas=(QuotaViolation(f"tenant:{ask.tenant}", text),),
            retry_after=reset,
            trailers=rate_headers((Allowance(window, limit, max(0, room - used), reset),)),
        )
    return Allowance(window, limit, max(0, room - after), reset)


@dataclass(frozen=True, slots=True)
class Mark:
    """Write ahead: up to so many completion tokens may have been accepted when this is all that is left."""

    request_id: RequestId
    tokens: int
    generation: int = 0

    def apply(self, windows: Windows) -> None:
        """
        Raises:
            ServiceError: somebody else took this router for dead and settled the row, or goes on with the request.
        """
        if not windows.database.execute(_MARK, (self.tokens, self.request_id, self.generation)):
            raise ServiceError(Reason.RESERVATION_LOST)

    def replay(self, windows: Windows) -> None:
        """As `apply`; a row settled or resumed in between stays as it is."""
        windows.database.execute(_MARK, (self.tokens, self.request_id, self.generation))


@dataclass(frozen=True, slots=True)
class Settle:
    """Close the row, give back what was reserved and not used, queue the event. A row that is settled, or was resumed
    since, stays as it is."""

    request_id: RequestId
    settlement: Settlement
    now: float
    generation: int = 0

    def apply(self, windows: Windows) -> bool:
        """Returns: False if the row had been settled before."""
        used = self.settlement
        values = (used.ending.value, self.now, used.prompt_tokens, used.cached_prompt_tokens)
        more = (used.completion_tokens, used.attempts, used.reasoning_tokens, used.device_seconds)
        rows = windows.database.query(_SETTLE, (*values, *more, self.request_id, self.generation))
        if not rows:
            return False
        tenant, reserved, charges, resumable_until = rows[0]
        for window, bucket in _charges_of(charges):
            if back := unused(window, reserved, used.tokens):
                windows.add((tenant, window.kind, bucket), -back)
        due_at = 0.0 if used.ending is Ending.COMPLETE else resumable_until
        windows.database.execute(
            "INSERT INTO outbox (request_id, due_at) VALUES (?, ?) ON CONFLICT DO NOTHING", (self.request_id, due_at)
        )
        return True

    def replay(self, windows: Windows) -> None:
        self.apply(windows)


def unused(window: Window, reserved: int, used: int) -> int:
    """What a settled request gives back to a window: the tokens it did not use, and its place among the streams."""
    return reserved - used if window.counts_tokens else int(window is Window.CONCURRENT_STREAMS)


Operation = Open | Mark | Settle
Charges = tuple[tuple[Window, int], ...]
"""Which windows a request was charged to, by number. All requests of a minute with the same limits share one."""


@functools.lru_cache(maxsize=1024)
def _charges_text(charges: Charges) -> str:
    return json.dumps({window.kind: bucket for window, bucket in charges})


@functools.lru_cache(maxsize=1024)
def _charges_of(text: str) -> Charges:
    return tuple((Window(kind), bucket) for kind, bucket in json.loads(text).items())


def settle_rows_of(windows: Windows, holder: str, now: float) -> int:
    """Settle what a dead router left open, from the marks; forget the router. Returns the number of rows.

    A prompt counts if at least one token was marked: before that the request cost its client nothing.
    """
    statement = """SELECT request_id, prompt_tokens, marked_tokens, attempts, generation FROM requests
        WHERE holder = ? AND ending IS NULL"""
    rows = windows.database.query(statement, (holder,))
    for request_id, prompt_tokens, marked, attempts, generation in rows:
        settlement = Settlement(Ending.CRASHED, prompt_tokens if marked else 0, 0, marked, attempts + 1)
        Settle(RequestId(request_id), settlement, now, generation).apply(windows)
    windows.database.execute("DELETE FROM holders WHERE holder = ?", (holder,))
    return len(rows)


def rate_headers(allowances: tuple[Allowance, ...]) -> dict[str, str]:
    """`x-ratelimit-*` as trailing metadata: limit, what remains, seconds until the window ends."""
    headers = {}
    for allowance in allowances:
        name = allowance.window.kind.replace("_", "-")
        headers[f"x-ratelimit-limit-{name}"] = str(allowance.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining)
        headers[f"x-ratelimit-reset-{name}"] = f"{allowance.reset_seconds:.0f}"
    return headers


def to_json(operation: Operation) -> dict[str, Any]:
    """For a journal."""
    if isinstance(operation, Mark):
        return {"mark": [operation.request_id, operation.tokens, operation.generation]}
    if isinstance(operation, Settle):
        used = operation.settlement
        counts = (used.prompt_tokens, used.cached_prompt_tokens, used.completion_tokens, used.attempts)
        about = (operation.request_id, operation.now, operation.generation, used.ending.value)
        return {"settle": [*about, *counts, used.reasoning_tokens, used.device_seconds]}
    ask = operation.reservation
    names = ("request_id", "model", "prompt_tokens", "max_completion_tokens", "tenant", "subject", "region")
    fields = {name: getattr(ask, name) for name in (*names, "idempotency_key", "resumable_until", "home")}
    limits = {window.kind: limit for window, limit in ask.limits} | {"hard": ask.limits.hard}
    return {"open": fields, "limits": limits, "holder": operation.holder, "now": operation.now}


def from_json(entry: dict[str, Any]) -> Operation:
    """The inverse of `to_json`."""
    if "mark" in entry:
        return Mark(*entry["mark"])
    if "settle" in entry:
        request_id, now, generation, ending, *numbers = entry["settle"]
        return Settle(request_id, Settlement(Ending(ending), *numbers), now, generation)
    return Open(Reservation(**entry["open"], limits=Limits(**entry["limits"])), entry["holder"], entry["now"])
