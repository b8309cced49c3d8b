"""A request that goes on at another router stays one row: billed once, whatever its first router did or still does."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.clock import ManualClock
from cluster.errors import Reason, ServiceError
from cluster.ids import TenantId
from cluster.ledger.database import SqliteDatabase
from cluster.ledger.export import Event, export_batch
from cluster.ledger.ledger import StoredLedger
from cluster.ledger.records import Ending, Limits, Reservation, Settlement
from cluster.ledger.resumption import MAX_GENERATION
from tests.support.ledgers import ledger, reservation, rows, settlement, used
from tests.support.router_world import run_async

ACME = TenantId("acme")
COLUMNS = "ending, prompt_tokens, completion_tokens, attempts, generation"


@asynccontextmanager
async def two_ledgers(tmp_path: Path, clock: ManualClock) -> AsyncIterator[tuple[StoredLedger, StoredLedger]]:
    """Of two routers on one store."""

    def connect() -> SqliteDatabase:
        return SqliteDatabase(tmp_path / "ledger.db")

    async with ledger(connect, tmp_path, clock=clock) as first, ledger(connect, tmp_path, clock=clock) as second:
        yield first, second


def asked(clock: ManualClock, **fields: object) -> Reservation:
    return reservation(tenant=ACME, region="here", resumable_until=clock.wall() + 100, **fields)


def ended(ending: Ending, tokens: int) -> Settlement:
    return Settlement(ending, 10, 0, tokens)


@pytest.mark.parametrize("ending", [None, *Ending])
@run_async
async def test_a_whole_answer_costs_what_it_holds(tmp_path: Path, ending: Ending | None) -> None:
    """However the first part ended, or if nobody has noticed yet that it has."""
    clock = ManualClock()
    limits = Limits(tokens_per_day=1000, concurrent_streams=3)
    async with two_ledgers(tmp_path, clock) as (first, second):
        ask = asked(clock, limits=limits)
        row = await first.open(ask)
        await row.accept(30)
        if ending is not None:
            await row.settle(ended(ending, 30))
        resumed = await second.resume(ask, 20, 0, "here")
        assert resumed.generation == 1
        if (marked := resumed.accept(40)) is not None:
            await marked
        await resumed.settle(ended(Ending.COMPLETE, 60))
        attempts = 2 if ending else 1
        assert await rows(first, COLUMNS) == [("complete", 10, 60, attempts, 1)]
        assert await used(first, ACME) == {"tokens_per_day": 70, "concurrent_streams": 0}


@run_async
async def test_what_the_first_router_accepted_is_not_forgotten(tmp_path: Path) -> None:
    """A client that resumes from far back, and leaves, still had what it had."""
    clock = ManualClock()
    async with two_ledgers(tmp_path, clock) as (first, second):
        ask = asked(clock)
        row = await first.open(ask)
        await row.accept(50)
        await row.settle(ended(Ending.CANCELLED, 50))
        resumed = await second.resume(ask, 5, 0, "here")
        await resumed.settle(ended(Ending.CANCELLED, 6))
        assert await rows(first, COLUMNS) == [("cancelled", 10, 50, 2, 1)]


@run_async
async def test_an_earlier_holder_changes_nothing_any_more(tmp_path: Path) -> None:
    clock = ManualClock()
    async with two_ledgers(tmp_path, clock) as (first, second):
        ask = asked(clock)
        row = await first.open(ask)
        await row.accept(10)
        resumed = await second.resume(ask, 10, 0, "here")
        written_ahead = row.accept(70)
        assert written_ahead is not None
        with pytest.raises(ServiceError) as caught:
            await written_ahead
        assert caught.value.reason is Reason.RESERVATION_LOST
        await row.settle(ended(Ending.FAILED, 80))
        assert await rows(first, COLUMNS) == [(None, 10, 0, 0, 1)], "still the second one's"
        await resumed.settle(ended(Ending.COMPLETE, 12))
        assert await rows(first, COLUMNS) == [("complete", 10, 12, 1, 1)]


@run_async
async def test_a_resumed_request_whose_router_dies_too_is_settled_from_its_marks(tmp_path: Path) -> None:
    clock = ManualClock()
    async with two_ledgers(tmp_path, clock) as (first, second):
        ask = asked(clock)
        await (await first.open(ask)).accept(10)
        resumed = await second.resume(ask, 10, 0, "here")
        written_ahead = resumed.accept(40)
        assert written_ahead is not None
        await written_ahead
        await second.close()
        ((ending, prompt, completion, _, generation),) = await rows(first, COLUMNS)
        assert (ending, prompt, generation) == ("crashed", 10, 1)
        assert 50 <= completion <= 50 + 32


@run_async
async def test_unfinished_requests_are_exported_when_they_cannot_go_on_any_more(tmp_path: Path) -> None:
    clock = ManualClock()
    events: list[Event] = []
    async with two_ledgers(tmp_path, clock) as (first, second):
        whole, broken, resumed = (asked(clock) for _ in range(3))
        await (await first.open(whole)).settle(settlement(7))
        for ask in (broken, resumed):
            await (await first.open(ask)).settle(ended(Ending.FAILED, 7))
        assert await export_batch(first, events.extend) == 1
        going_on = await second.resume(resumed, 7, 0, "here")
        clock.advance(101)
        assert await export_batch(first, events.extend) == 1
        await going_on.settle(ended(Ending.COMPLETE, 9))
        assert await export_batch(first, events.extend) == 1
    assert [(event["id"], event["data"]["completion_tokens"]) for event in events] == [
        (whole.request_id, 7),
        (broken.request_id, 7),
        (resumed.request_id, 9),
    ]


@run_async
async def test_hard_limits_hold_for_resumed_requests_too(tmp_path: Path) -> None:
    clock = ManualClock()
    limits = Limits(tokens_per_day=120)
    async with two_ledgers(tmp_path, clock) as (first, second):
        ask = asked(clock, limits=limits)
        await (await first.open(ask)).settle(ended(Ending.FAILED, 20))
        other = await first.open(asked(clock, limits=limits, max_completion_tokens=50))
        with pytest.raises(ServiceError) as caught:
            await second.resume(ask, 20, 0, "here")
        assert caught.value.reason is Reason.QUOTA_EXCEEDED
        await other.settle(settlement(0))
        await second.resume(ask, 20, 0, "here")


@run_async
async def test_who_may_resume_and_how_often(tmp_path: Path) -> None:
    clock = ManualClock()
    async with two_ledgers(tmp_path, clock) as (first, second):
        ask = asked(clock)
        await first.open(ask)
        with pytest.raises(ServiceError) as caught:
            await second.resume(dataclasses.replace(ask, tenant=TenantId("other")), 0, 0, "here")
        assert caught.value.reason is Reason.RESUME_REFUSED
        for generation in range(MAX_GENERATION):
            assert (await second.resume(ask, 0, generation, "here")).generation == generation + 1
        with pytest.raises(ServiceError) as caught:
            await second.resume(ask, 0, MAX_GENERATION, "here")
        assert caught.value.reason is Reason.RESUME_REFUSED


@run_async
async def test_what_was_begun_before_another_ledger_is_billed_there(tmp_path: Path) -> None:
    """Regions do not share a ledger: here only what came here counts."""
    clock = ManualClock()
    async with two_ledgers(tmp_path, clock) as (first, _):
        ask = asked(clock, limits=Limits(tokens_per_day=1000))
        with pytest.raises(ServiceError) as caught:
            await first.resume(ask, 40, 2, "here")
        assert caught.value.reason is Reason.LEDGER_UNAVAILABLE, "it was begun here, so it must come"
        resumed = await first.resume(ask, 40, 2, "elsewhere")
        assert resumed.generation == 3
        assert await used(first, ACME) == {"tokens_per_day": 60}
        written_ahead = resumed.accept(25)
        assert written_ahead is not None
        await written_ahead
        await resumed.settle(ended(Ending.COMPLETE, 65))
        assert await rows(first, COLUMNS) == [("complete", 0, 25, 1, 3)]
