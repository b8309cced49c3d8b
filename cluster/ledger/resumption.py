"""A request that goes on at another router: its row is taken over or opened again. Knows tables; no tokens of clients.

Each resumption is a new generation of the row, and whatever an earlier holder still marks or settles is ignored. The
row is billed as one request: what its first holder accepted is never billed twice, nor forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import Reason, ServiceError
from cluster.ledger.database import Database
from cluster.ledger.operations import Open, check_limit, unused
from cluster.ledger.records import Allowance, Ending, Reservation, Settlement, Window
from cluster.ledger.windows import Windows

MAX_GENERATION = 16
"""A request may be resumed so often: each time its tokens are computed again and not billed again."""

_FIND = """SELECT tenant, generation, ending, marked_tokens, prompt_tokens, completion_tokens, attempts,
    reserved_tokens, charges FROM requests WHERE request_id = ?"""
_TAKE = """UPDATE requests SET holder = ?, generation = ?, ending = NULL, settled_at = NULL, marked_tokens = ?,
    prompt_tokens = ?, cached_prompt_tokens = 0, completion_tokens = 0, resumable_until = ? WHERE request_id = ?"""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A row that goes on."""

    reservation: Reservation
    generation: int
    marked: int = 0
    """Tokens that are on disk as perhaps accepted, by earlier holders or now."""
    received: int = 0
    """Tokens that the client proved to have."""
    elsewhere: bool = False
    """Begun where this ledger does not see: what the client has is billed there."""
    attempts: int = 0
    """Of earlier holders."""
    allowances: tuple[Allowance, ...] = ()

    def bill(self, used: Settlement) -> Settlement:
        """The row's settlement, from what the answer holds now, `received` included.

        A whole answer says exactly what it cost. One that is cut short again cost what an earlier holder accepted, if
        that was more.
        """
        if self.elsewhere:
            return replace(used, prompt_tokens=0, completion_tokens=used.completion_tokens - self.received)
        tokens = used.completion_tokens
        if used.ending is not Ending.COMPLETE:
            tokens = max(tokens, self.marked)
        prompt = self.reservation.prompt_tokens if tokens else used.prompt_tokens
        attempts = self.attempts + used.attempts
        return replace(used, prompt_tokens=prompt, completion_tokens=tokens, attempts=attempts)


def resume(
    database: Database, ask: Reservation, holder: str, received: int, generation: int, now: float, begun_in: str
) -> Resumed:
    """Take a request's row over, in one transaction with whatever else `database` is told.

    Args:
        ask: the whole request, as it was when it was opened.
        received: tokens that the client has.
        generation: that the client last heard of.
        begun_in: region where the client last had the request.

    Raises:
        ServiceError: it was resumed too often, is another tenant's, or a hard limit has no room for what is left of it.
    """
    rows = database.query(_FIND, (ask.request_id,))
    windows = Windows(database)
    if rows:
        taken = _take(windows, ask, holder, received, rows[0], now)
    elif begun_in == ask.region:
        # Its first router could not reach the store, and has it in its journal: soon it is here.
        raise ServiceError(Reason.LEDGER_UNAVAILABLE, retry_after=1.0)
    else:
        taken = _open_elsewhere(windows, ask, holder, received, generation + 1, now)
    windows.flush()
    return taken


def _take(windows: Windows, ask: Reservation, holder: str, received: int, row: Sequence[Any], now: float) -> Resumed:
    tenant, generation, ending, marked, prompt, completion, attempts, reserved, charges = row
    if tenant != ask.tenant or generation >= MAX_GENERATION:
        raise ServiceError(Reason.RESUME_REFUSED)
    if ending is not None:
        _reserve_again(windows, ask, reserved, prompt + completion, json.loads(charges), now)
        marked = completion
        windows.database.execute("DELETE FROM outbox WHERE request_id = ?", (ask.request_id,))
    marked = max(marked, received)
    values = (holder, generation + 1, marked, ask.prompt_tokens, ask.resumable_until, ask.request_id)
    windows.database.execute(_TAKE, values)
    return Resumed(ask, generation + 1, marked, received, attempts=attempts)


def _reserve_again(
    windows: Windows, ask: Reservation, reserved: int, used: int, charges: dict[str, int], now: float
) -> None:
    """Charge what its settlement gave back. The windows stay those in which the request began."""
    for window, limit in ask.limits:
        if charges.get(window.kind) == window.bucket(now):
            check_limit(windows, ask, window, limit, now, unused(window, reserved, used))
    for kind, bucket in charges.items():
        if again := unused(Window(kind), reserved, used):
            windows.add((ask.tenant, kind, bucket), again)


def _open_elsewhere(
    windows: Windows, ask: Reservation, holder: str, received: int, generation: int, now: float
) -> Resumed:
    left = replace(
        ask, prompt_tokens=0, max_completion_tokens=ask.max_completion_tokens - received, idempotency_key=None
    )
    allowances = Open(left, holder, now, generation).apply(windows)
    return Resumed(ask, generation, 0, received, elsewhere=True, allowances=allowances)
