"""What the router asks of a ledger, and the one that keeps nothing. Knows tokens and endings; no models, no network.

The order is: reserve, open the row, accept tokens (ahead of the bytes), settle. `settle` comes with every ending,
whichever it is. `cluster/ledger/ledger.py` is the ledger of production.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cluster.ids import RequestId
from cluster.ledger.records import Reservation, Settlement

log = logging.getLogger(__name__)


class Row(Protocol):
    """One request's entry."""

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


@dataclass
class MemoryRow:
    """An entry of `MemoryLedger`."""

    ledger: MemoryLedger
    reservation: Reservation
    accepted: int = 0

    @property
    def headers(self) -> dict[str, str]:
        return {}

    def accept(self, tokens: int) -> None:
        self.accepted += tokens

    async def settle(self, settlement: Settlement) -> None:
        del self.ledger.open_rows[self.reservation.request_id]
        self.ledger.settled += 1
        self.ledger.prompt_tokens += settlement.prompt_tokens
        self.ledger.completion_tokens += self.accepted
        log.info(
            "%s %s: %s, prompt %d (%d cached), completion %d",
            self.reservation.request_id,
            self.reservation.model,
            settlement.ending.value,
            settlement.prompt_tokens,
            settlement.cached_prompt_tokens,
            self.accepted,
        )
