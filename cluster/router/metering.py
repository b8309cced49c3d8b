"""What the router asks of a ledger, and the one that keeps nothing. Knows tokens and endings; no models, no network.

The order is: reserve, open the row, accept tokens (ahead of the bytes), settle. `settle` comes with every ending,
whichever it is. `cluster/ledger/ledger.py` is the ledger of production.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cluster.errors import Reason, ServiceError
from cluster.ids import RequestId
from cluster.ledger.records import Reservation, Settlement

log = logging.getLogger(__name__)


class Row(Protocol):
    """One request's entry."""

    @property
    def generation(self) -> int:
        """How often the request was resumed."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Trailing metadata about what the tenant's limits leave."""

    def accept(self, tokens: int) -> Awaitable[object] | None:
        """Cover `tokens` more completion tokens.

        Returns:
            None if a mark written earlier covers them; else what to await before they are sent.

        Raises:
            ServiceError: the reservation does not cover them, or has lapsed (from the awaitable too).
        """

    async def settle(self, settlement: Settlement) -> None:
        """Close the entry and give back what was reserved and not used."""


class Ledger(Protocol):
    """Where usage is kept."""

    async def open(self, reservation: Reservation) -> Row:
        """Reserve and open the entry.

        Raises:
            ServiceError: a quota leaves no room.
        """

    async def resume(self, reservation: Reservation, received: int, generation: int, begun_in: str) -> Row:
        """Go on with the entry of a request whose client has `received` tokens and heard of `generation`, in the region
        `begun_in`.

        Raises:
            ServiceError: it cannot go on, or a quota leaves no room.
        """


@dataclass
class MemoryLedger:
    """Keeps open entries and sums in this process and logs what is settled: for deployments that bill nobody."""

    open_rows: dict[RequestId, MemoryRow] = field(default_factory=dict)
    settled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    async def open(self, reservation: Reservation) -> MemoryRow:
        row = MemoryRow(self, reservation)
        self.open_rows[reservation.request_id] = row
        return row

    async def resume(self, reservation: Reservation, received: int, generation: int, begun_in: str) -> MemoryRow:
        """An entry that is still open is taken over. Of one that is settled nothing is known any more but what the
        client has, which was counted then."""
        before = self.open_rows.get(reservation.request_id)
        counted = 0 if before else received
        row = MemoryRow(self, reservation, received, counted=counted, generation=generation + 1)
        self.open_rows[reservation.request_id] = row
        return row


@dataclass
class MemoryRow:
    """An entry of `MemoryLedger`."""

    ledger: MemoryLedger
    reservation: Reservation
    accepted: int = 0
    counted: int = 0
    """Of those, what an earlier entry of the request has counted, and the prompt with them."""
    generation: int = 0

    @property
    def headers(self) -> dict[str, str]:
        return {}

    def accept(self, tokens: int) -> None:
        if self.ledger.open_rows.get(self.reservation.request_id) is not self:
            raise ServiceError(Reason.RESERVATION_LOST)
        self.accepted += tokens

    async def settle(self, settlement: Settlement) -> None:
        if self.ledger.open_rows.get(self.reservation.request_id) is not self:
            return
        del self.ledger.open_rows[self.reservation.request_id]
        self.ledger.settled += 1
        self.ledger.prompt_tokens += 0 if self.counted else settlement.prompt_tokens
        self.ledger.completion_tokens += self.accepted - self.counted
        log.info(
            "%s %s: %s, prompt %d (%d cached), completion %d",
            self.reservation.request_id,
            self.reservation.model,
            settlement.ending.value,
            settlement.prompt_tokens,
            settlement.cached_prompt_tokens,
            self.accepted,
        )
