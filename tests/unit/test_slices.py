"""Slices of limits between regions: whatever is lost, late or doubled on the way, no hard limit is exceeded (T32)."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ServiceError
from cluster.ids import ModelName, RequestId, TenantId
from cluster.ledger.database import Database, SqliteDatabase
from cluster.ledger.operations import Open, Settle
from cluster.ledger.records import Ending, Limits, Reservation, Settlement, Window
from cluster.ledger.schema import create_tables
from cluster.ledger.slices import SHARE, Ask, Grant, give, prepare, take, wanted_slice
from cluster.ledger.windows import Windows

NOW = 1_000_000_000.0
DAY = Window.TOKENS_PER_DAY
BUCKET = DAY.bucket(NOW)
ACME = TenantId("acme")


class Store:
    """A database in a folder of its own; nothing of it is ever committed, so nothing waits for a disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.database: Database = SqliteDatabase(Path(self._folder.name) / "ledger.db")
        create_tables(self.database)
        self.database.begin()

    def close(self) -> None:
        self.database.close()
        self._folder.cleanup()


class Region(Store):
    """One store, and what its requests do."""

    def __init__(self, name: str, limit: int, home: str) -> None:
        super().__init__()
        self.name, self.limit, self.home = name, limit, home
        self.open: list[tuple[RequestId, int]] = []
        self.count = 0

    def admit(self, tokens: int) -> bool:
        self.count += 1
        request_id = RequestId(f"{self.name}-{self.count}")
        ask = Reservation(
            request_id, ModelName("m"), 0, tokens, ACME, limits=Limits(tokens_per_day=self.limit), home=self.home
        )
        windows = Windows(self.database)
        try:
            Open(ask, "router", NOW).apply(windows)
        except ServiceError:
            return False
        windows.flush()
        self.open.append((request_id, tokens))
        return True

    def settle(self, share: float) -> None:
        request_id, tokens = self.open.pop()
        windows = Windows(self.database)
        Settle(request_id, Settlement(Ending.COMPLETE, 0, 0, int(share * tokens)), NOW).apply(windows)
        windows.flush()

    @property
    def used(self) -> int:
        return Windows(self.database).used((ACME, DAY.kind, BUCKET))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 400), num_regions=st.integers(1, 4))
def test_no_interleaving_exceeds_a_hard_limit(seed: int, limit: int, num_regions: int) -> None:
    """Questions and answers of several routers a region overtake each other, come twice, or never."""
    rng = random.Random(seed)
    home = Region("home", limit, "")
    others = [Region(f"r{number}", limit, "home") for number in range(num_regions)]
    asks: list[tuple[Region, Ask]] = []
    grants: list[tuple[Region, Ask, Grant]] = []
    for _ in range(120):
        region = rng.choice(others)
        match rng.randrange(8):
            case 0 | 1:
                region.admit(rng.randrange(1, limit // 2 + 2))
            case 2:
                home.admit(rng.randrange(1, limit // 2 + 2))
            case 3 if region.open:
                region.settle(rng.random())
            case 4:
                refused = rng.choice([0, rng.randrange(limit + 1)])
                ask = prepare(region.database, ACME, DAY, BUCKET, limit, refused, is_idle=rng.random() < 0.2)
                if ask is not None:
                    asks.append((region, ask))
            case 5 | 6 if asks:
                place = rng.randrange(len(asks))
                asker, ask = asks[place]
                if rng.random() < 0.8:
                    del asks[place]  # else it will come a second time
                if rng.random() < 0.9:
                    grants.append((asker, ask, give(home.database, ask, asker.name, limit)))
            case 7 if grants:
                taker, ask, grant = grants.pop(rng.randrange(len(grants)))
                if rng.random() < 0.8:
                    take(taker.database, ask, grant)
        own = sum(tokens for _, tokens in home.open)
        assert own + sum(region.used for region in others) <= limit
        assert home.used <= limit
    for region in (home, *others):
        region.close()


def test_a_region_that_asks_gets_what_is_left() -> None:
    home, other = Region("home", 1000, ""), Region("eu", 1000, "home")
    assert not other.admit(1), "nothing is held before it was given"
    exchange(home, other)
    assert other.admit(1000 // SHARE)
    assert not other.admit(1000)
    exchange(home, other, refused=800)
    assert other.admit(800)
    assert not home.admit(100), "given away"
    assert home.admit(75)
    home.close()
    other.close()


def test_what_is_not_used_goes_back() -> None:
    home, other = Region("home", 1000, ""), Region("eu", 1000, "home")
    exchange(home, other)
    assert other.admit(100)
    other.settle(0.2)
    exchange(home, other, is_idle=True)
    assert home.used == other.used == 20
    assert home.admit(980)
    assert not other.admit(1)
    home.close()
    other.close()


def exchange(home: Region, other: Region, refused: int = 0, *, is_idle: bool = False) -> None:
    """One question and its answer."""
    ask = prepare(other.database, ACME, DAY, BUCKET, other.limit, refused, is_idle=is_idle)
    assert ask is not None
    take(other.database, ask, give(home.database, ask, other.name, home.limit))


@given(
    limit=st.integers(0, 10**9),
    used=st.integers(0, 10**9),
    granted=st.integers(0, 10**9),
    refused=st.integers(0, 10**9),
)
def test_a_slice_is_bounded_and_settles(limit: int, used: int, granted: int, refused: int) -> None:
    wanted = wanted_slice(limit, used, granted, refused)
    assert wanted == granted or wanted <= limit
    assert wanted <= max(limit, used) + max(1, limit // SHARE) + refused or wanted == granted
    assert wanted_slice(limit, used, wanted) == wanted or wanted == limit or refused > 0, "asking again changes nothing"


@pytest.mark.parametrize("kind", list(Window))
def test_every_window_can_be_sliced(kind: Window) -> None:
    home, other = Store(), Store()
    name = (ACME, kind.kind, kind.bucket(NOW))
    ask = prepare(other.database, ACME, kind, kind.bucket(NOW), 16)
    assert ask is not None
    take(other.database, ask, give(home.database, ask, "eu", 16))
    assert Windows(other.database).held(name) == Windows(home.database).used(name) == 2
    home.close()
    other.close()
