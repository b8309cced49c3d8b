"""What every ledger's store must do, whichever it is: reserve, mark, settle, refuse, recover."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.clock import ManualClock
from cluster.errors import ConfigurationError, Reason, ServiceError
from cluster.ids import TenantId
from cluster.ledger.database import SqliteDatabase
from cluster.ledger.operations import Mark, Open, Settle, from_json, to_json
from cluster.ledger.postgres import PostgresDatabase
from cluster.ledger.records import Ending, Limits, Settlement, Window
from cluster.ledger.reports import summarize
from cluster.ledger.schema import create_tables
from cluster.ledger.slices import give, prepare, take
from cluster.ledger.windows import Windows
from tests.support.ledgers import Connect, ledger, reservation, rows, settlement, used
from tests.support.postgres_server import postgres_server, programs
from tests.support.router_world import run_async


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL server, where it is installed."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    """What opens a connection to a store of the test's own."""
    if request.param == "sqlite":
        return lambda: SqliteDatabase(tmp_path / "ledger.db")
    url = request.getfixturevalue("server")
    schema = f"test_{secrets.token_hex(6)}"
    database = PostgresDatabase(url)
    database.execute(f"CREATE SCHEMA {schema}")
    database.close()
    return lambda: PostgresDatabase(f"{url}&options=-csearch_path%3D{schema}")


ACME, BETA = TenantId("acme"), TenantId("beta")


@run_async
async def test_a_request_is_one_row_with_what_it_used(connect: Connect, tmp_path: Path) -> None:
    async with ledger(connect, tmp_path) as books:
        row = await books.open(reservation(tenant=ACME, subject="key", region="eu"))
        for _ in range(7):
            if (written := row.accept(1)) is not None:
                await written
        await row.settle(replace(settlement(7), reasoning_tokens=3, device_seconds=0.25))
        columns = "tenant, subject, model, region, prompt_tokens, cached_prompt_tokens, completion_tokens, ending"
        assert await rows(books, columns) == [("acme", "key", "m", "eu", 10, 4, 7, "complete")]
        assert await rows(books, "reasoning_tokens, device_seconds") == [(3, 0.25)]
        [told] = await books.change(lambda database: summarize(database, None, 0, 1e12))
        assert (told.completion_tokens, told.reasoning_tokens, told.device_seconds) == (7, 3, 0.25)


@run_async
async def test_settling_twice_changes_nothing(connect: Connect, tmp_path: Path) -> None:
    async with ledger(connect, tmp_path) as books:
        ask = reservation(tenant=ACME, limits=Limits(tokens_per_day=1000))
        row = await books.open(ask)
        await row.settle(settlement(5))
        await row.settle(settlement(50))
        assert await rows(books, "completion_tokens") == [(5,)]
        assert await used(books, ACME) == {"tokens_per_day": 15}
        assert len(await books.change(lambda db: db.query("SELECT * FROM outbox"))) == 1


@run_async
async def test_marks_are_on_disk_before_tokens_pass_and_never_far_ahead(connect: Connect, tmp_path: Path) -> None:
    clock = ManualClock()
    other = connect()
    async with ledger(connect, tmp_path, clock=clock) as books:
        row = await books.open(reservation(max_completion_tokens=1000))
        written_ahead = 0
        for accepted in range(1, 1001):
            clock.advance(0.001)  # 1,000 tokens a second: 50 ms are more than 32 tokens
            if (written := row.accept(1)) is not None:
                await written
                written_ahead += 1
            marked = other.query("SELECT marked_tokens FROM requests")[0][0]
            assert accepted <= marked <= min(accepted + 32, 1000)
        assert written_ahead < 50, "a fast stream shares its marks"
    other.close()


@run_async
async def test_a_slow_stream_is_marked_exactly(connect: Connect, tmp_path: Path) -> None:
    clock = ManualClock()
    async with ledger(connect, tmp_path, clock=clock) as books:
        row = await books.open(reservation())
        for accepted in range(1, 20):
            clock.advance(0.06)
            written = row.accept(1)
            assert written is not None
            await written
            assert await rows(books, "marked_tokens") == [(accepted,)]


@run_async
async def test_more_than_was_reserved_is_never_accepted(connect: Connect, tmp_path: Path) -> None:
    async with ledger(connect, tmp_path) as books:
        row = await books.open(reservation(max_completion_tokens=3))
        row.accept(3)
        with pytest.raises(ServiceError):
            row.accept(1)


@pytest.mark.parametrize(
    ("limits", "admitted"),
    [
        (Limits(requests_per_minute=10), 10),
        (Limits(concurrent_streams=10), 10),
        (Limits(tokens_per_minute=1100), 10),
        (Limits(tokens_per_day=1109), 10),
        (Limits(tokens_per_month=1100, requests_per_minute=50), 10),
    ],
    ids=["requests", "streams", "tokens a minute", "tokens a day", "two limits"],
)
@run_async
async def test_hard_limits_admit_exactly_what_fits(
    connect: Connect, tmp_path: Path, limits: Limits, admitted: int
) -> None:
    """T32 at the store: 200 at once through two routers."""
    clock = ManualClock()
    async with ledger(connect, tmp_path, clock=clock) as one, ledger(connect, tmp_path, clock=clock) as two:
        asks = [books.open(reservation(tenant=ACME, limits=limits)) for books in [one, two] * 100]
        results = await asyncio.gather(*asks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, ServiceError)]
        assert len(results) - len(refused) == admitted
        for error in refused:
            assert error.reason is Reason.QUOTA_EXCEEDED
            assert error.retry_after is not None
            assert error.retry_after > 0
            assert error.quotas[0].subject == "tenant:acme"
            assert any(name.startswith("x-ratelimit-limit-") for name in error.trailers)
        await one.open(reservation(tenant=BETA, limits=limits))


@run_async
async def test_a_region_uses_its_slice_and_no_more(connect: Connect, tmp_path: Path) -> None:
    clock = ManualClock()
    day, limits = Window.TOKENS_PER_DAY, Limits(tokens_per_day=800)
    bucket = day.bucket(clock.wall())
    async with ledger(connect, tmp_path, clock=clock) as books:
        asks = [
            await books.change(lambda database, name=name: prepare(database, name, day, bucket, 800, 220))  # type: ignore[misc]
            for name in (ACME, BETA)
        ]
        assert all(ask is not None and ask.wanted == 220 for ask in asks)
        given = await books.change(lambda database: give(database, asks[1], "west", 800))  # the home's part
        assert (given.granted, await used(books, BETA)) == (220, {"tokens_per_day": 220})
        await books.change(lambda database: take(database, asks[0], given))
        for _ in range(2):
            row = await books.open(reservation(tenant=ACME, limits=limits, home="east"))
        assert row.allowances[0].remaining == 0
        with pytest.raises(ServiceError) as caught:
            await books.open(reservation(tenant=ACME, limits=limits, home="east"))
        assert caught.value.retry_after == 1.0
        assert "this region's slice of 800" in caught.value.quotas[0].description
        await row.settle(settlement(0))
        await books.open(reservation(tenant=ACME, limits=limits, home="east", max_completion_tokens=90))


@run_async
async def test_what_was_not_used_can_be_used_again(connect: Connect, tmp_path: Path) -> None:
    limits = Limits(tokens_per_day=220, concurrent_streams=2)
    async with ledger(connect, tmp_path, clock=ManualClock()) as books:
        first = await books.open(reservation(tenant=ACME, limits=limits))
        second = await books.open(reservation(tenant=ACME, limits=limits))
        assert [(a.window, a.remaining) for a in second.allowances] == [
            (Window.TOKENS_PER_DAY, 0),
            (Window.CONCURRENT_STREAMS, 0),
        ]
        assert second.headers["x-ratelimit-remaining-tokens-per-day"] == "0"
        with pytest.raises(ServiceError):
            await books.open(reservation(tenant=ACME, limits=limits))
        await first.settle(settlement(0))
        await second.settle(Settlement(Ending.CANCELLED, 10, 0, 90))
        assert await used(books, ACME) == {"tokens_per_day": 110, "concurrent_streams": 0}
        await books.open(reservation(tenant=ACME, limits=limits))


@run_async
async def test_a_window_ends(connect: Connect, tmp_path: Path) -> None:
    clock = ManualClock()
    limits = Limits(requests_per_minute=1)
    async with ledger(connect, tmp_path, clock=clock) as books:
        await books.open(reservation(tenant=ACME, limits=limits))
        with pytest.raises(ServiceError) as caught:
            await books.open(reservation(tenant=ACME, limits=limits))
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 60
        clock.advance(caught.value.retry_after)
        await books.open(reservation(tenant=ACME, limits=limits))


@run_async
async def test_soft_limits_count_and_let_pass(connect: Connect, tmp_path: Path) -> None:
    limits = Limits(tokens_per_day=150, hard=False)
    async with ledger(connect, tmp_path) as books:
        await books.open(reservation(tenant=ACME, limits=limits))
        row = await books.open(reservation(tenant=ACME, limits=limits))
        assert row.headers["x-ratelimit-remaining-tokens-per-day"] == "0"
        assert await used(books, ACME) == {"tokens_per_day": 220}


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
@run_async
async def test_clocks_that_jump_leave_no_window_negative(connect: Connect, tmp_path: Path, jump: float) -> None:
    """T20: what was charged to a window is given back to the same one."""

    class JumpingClock(ManualClock):
        offset = 0.0

        def wall(self) -> float:
            return super().wall() + self.offset

    clock = JumpingClock()
    limits = Limits(requests_per_minute=5, tokens_per_minute=1000, tokens_per_day=10_000, concurrent_streams=5)
    async with ledger(connect, tmp_path, clock=clock) as books:
        before = [await books.open(reservation(tenant=ACME, limits=limits)) for _ in range(3)]
        clock.offset = jump
        after = await books.open(reservation(tenant=ACME, limits=limits))
        for row in [*before, after]:
            assert row.accept(5) is not None
            await row.settle(settlement(5))
        statement = "SELECT MIN(used) FROM windows"
        assert (await books.change(lambda db: db.query(statement)))[0][0] >= 0
        assert await used(books, ACME) == {
            "requests_per_minute": 4,
            "tokens_per_minute": 60,
            "tokens_per_day": 60,
            "concurrent_streams": 0,
        }


@run_async
async def test_one_idempotency_key_is_one_execution(connect: Connect, tmp_path: Path) -> None:
    """T28, T29 at the store."""
    async with ledger(connect, tmp_path) as one, ledger(connect, tmp_path) as two:
        asks = [reservation(tenant=ACME, idempotency_key="k") for _ in range(50)]
        results = await asyncio.gather(
            *(([one, two][i % 2]).open(ask) for i, ask in enumerate(asks)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, ServiceError)]
        assert len(refused) == 49
        [(winner,)] = await rows(one, "request_id")
        assert {error.reason for error in refused} == {Reason.DUPLICATE}
        assert {error.metadata["request_id"] for error in refused} == {winner}
        await two.open(reservation(tenant=BETA, idempotency_key="k"))
        assert len(await rows(one)) == 2


@run_async
async def test_an_open_that_is_cancelled_leaves_nothing_reserved(
    connect: Connect, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """T33 at the store: ten thousand, cancelled at every moment of the way."""
    rounds = 200 if request.node.callspec.params["connect"] == "sqlite" else 20
    limits = Limits(tokens_per_day=10**9, concurrent_streams=10**6)
    rng = random.Random(1)
    async with ledger(connect, tmp_path) as books:

        async def admit() -> None:
            row = await books.open(reservation(tenant=ACME, limits=limits))
            try:
                await asyncio.sleep(0.001)
            finally:
                await asyncio.shield(row.settle(Settlement(Ending.CANCELLED, 0, 0, 0)))

        for _ in range(rounds):
            tasks = [asyncio.create_task(admit()) for _ in range(50)]
            await asyncio.sleep(rng.random() * 0.004)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(10):
            while await rows(books, where="ending IS NULL"):
                await asyncio.sleep(0.01)
        assert set((await used(books, ACME)).values()) <= {0}


@run_async
async def test_a_silent_routers_rows_are_settled_from_their_marks(connect: Connect, tmp_path: Path) -> None:
    """A stopped process still exists: only its silence tells. When it wakes, its streams are refused."""
    clock = ManualClock()
    async with ledger(connect, tmp_path, clock=ManualClock(), lease_seconds=3) as silent:
        limits = Limits(tokens_per_day=1000, concurrent_streams=4)
        marked, unmarked = [
            await silent.open(reservation(tenant=ACME, request_id=name, limits=limits)) for name in ("marked", "none")
        ]
        written = marked.accept(20)
        assert written is not None
        await written
        async with ledger(connect, tmp_path, clock=clock, lease_seconds=3) as alive:
            for _ in range(5):
                assert await rows(alive, where="ending IS NOT NULL") == []
                clock.advance(1.0)
                async with asyncio.timeout(5):
                    await alive._keep_house()
                if await rows(alive, where="ending IS NOT NULL"):
                    break
            assert await rows(
                alive, "request_id, ending, prompt_tokens, marked_tokens <= 52, completion_tokens >= 20"
            ) == [
                ("marked", "crashed", 10, 1, 1),
                ("none", "crashed", 0, 1, 0),
            ]
            [(completion,)] = await rows(alive, "completion_tokens", "request_id = 'marked'")
            assert await used(alive, ACME) == {"tokens_per_day": 10 + completion, "concurrent_streams": 0}
            with pytest.raises(ServiceError) as caught:
                await unmarked.accept(50)  # type: ignore[misc]
            assert caught.value.reason is Reason.RESERVATION_LOST
            await marked.settle(settlement(60))
            assert await rows(alive, "completion_tokens", "request_id = 'marked'") == [(completion,)]


@run_async
async def test_closing_settles_what_is_still_open(connect: Connect, tmp_path: Path) -> None:
    async with ledger(connect, tmp_path) as books:
        await books.open(reservation())
    async with ledger(connect, tmp_path) as books:
        assert await rows(books, "ending, completion_tokens") == [("crashed", 0)]
        assert await books.change(lambda db: db.query("SELECT COUNT(*) FROM holders")) == [(1,)]


@run_async
async def test_a_thousand_random_requests_add_up(connect: Connect, tmp_path: Path) -> None:
    """T30 at the store: whatever is interleaved, the sums are those of the clients."""
    rng = random.Random(7)
    accepted = 0
    async with ledger(connect, tmp_path) as one, ledger(connect, tmp_path) as two:

        async def live(number: int) -> None:
            nonlocal accepted
            row = await (one, two)[number % 2].open(reservation(tenant=ACME, limits=Limits(tokens_per_day=10**9)))
            tokens = 0
            for _ in range(rng.randrange(6)):
                step = rng.randrange(1, 20)
                if (written := row.accept(step)) is not None:
                    await written
                tokens += step
            accepted += tokens
            await row.settle(settlement(tokens, rng.choice(list(Ending))))

        await asyncio.gather(*(live(number) for number in range(1000)))
        [(count, completion)] = await rows(one, "COUNT(*), SUM(completion_tokens)", order="1")
        late = await rows(one, where="marked_tokens < completion_tokens")
        assert (count, completion, late) == (1000, accepted, [])
        assert await used(one, ACME) == {"tokens_per_day": accepted + 10 * 1000}
        assert one.num_commits + two.num_commits < 2000, "commits are shared"


@run_async
async def test_one_bad_change_fails_alone(connect: Connect, tmp_path: Path) -> None:
    async with ledger(connect, tmp_path) as books:
        good = [books.open(reservation()) for _ in range(5)]
        bad = books.change(lambda db: db.query("SELECT * FROM requests") and 1 // 0)
        results = await asyncio.gather(*good, bad, return_exceptions=True)
        assert isinstance(results[-1], ZeroDivisionError)
        assert not any(isinstance(result, BaseException) for result in results[:-1])
        assert len(await rows(books)) == 5


def test_an_operation_applied_twice_is_applied_once(connect: Connect, tmp_path: Path) -> None:
    database = connect()
    create_tables(database)
    ask = reservation(tenant=ACME, idempotency_key="k", limits=Limits(tokens_per_day=1000, hard=False))
    operations = [
        Open(ask, "router_x", 1e9),
        Mark(ask.request_id, 7),
        Settle(ask.request_id, settlement(7), 1e9),
    ]
    assert [from_json(to_json(operation)) for operation in operations] == operations
    windows = Windows(database)
    for _ in range(2):
        for operation in operations:
            operation.replay(windows)
    windows.flush()
    assert database.query("SELECT used FROM windows")[0][0] == 17
    assert len(database.query("SELECT * FROM outbox")) == 1
    database.close()


def test_a_store_of_another_version_is_left_alone(connect: Connect) -> None:
    database = connect()
    create_tables(database)
    create_tables(database)  # again is nothing
    database.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(ConfigurationError, match=r"schema version 99, this program writes version 3; .* aside"):
        create_tables(database)
    assert [tuple(row) for row in database.query("SELECT version FROM schema_version")] == [(99,)]
    database.close()
