"""What operators are shown: rates between two readings, and how they look."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from cluster.cli.top import gauge, view
from cluster.config import parse_config
from cluster.overview.figures import Reading, RegionView, region_view
from cluster.overview.poll import places_of
from tests.support.region_status import status


def test_rates_hold_between_two_readings() -> None:
    region = region_view("c:1", Reading(10.0, status()), Reading(12.0, status(scale=3)))
    (replica,) = region.replicas
    assert replica.tokens_per_second == pytest.approx(40.0)
    assert replica.missed_per_second == pytest.approx(100.0)
    assert replica.hit_share == pytest.approx(0.75)
    assert replica.kv_share == pytest.approx(0.5)
    rank = replica.ranks[3]
    assert (rank.stage, rank.tensor_rank) == (1, 1)
    assert rank.steps_per_second == pytest.approx(11.0)
    assert rank.busy == pytest.approx(1.0)
    assert rank.waiting == pytest.approx(0.25)
    assert rank.mfu == pytest.approx(0.5)
    assert rank.mbu == pytest.approx(0.4)


@pytest.mark.parametrize("change", [{"epoch": 2}, {"pid": 8}])
def test_counters_that_began_anew_give_no_rate(change: dict[str, Any]) -> None:
    region = region_view("c:1", Reading(10.0, status(scale=3)), Reading(12.0, status(**change)))
    assert region.replicas[0].ranks[0].mfu is None
    if "epoch" in change:
        assert region.replicas[0].tokens_per_second is None


def test_one_reading_shows_shares_and_no_rates() -> None:
    (replica,) = region_view("c:1", None, Reading(10.0, status())).replicas
    assert replica.hit_share == pytest.approx(0.75)
    assert replica.tokens_per_second is None


def test_the_view_shows_a_grid_of_stages_and_ranks() -> None:
    screen = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115 (the recording is what counts)
    region = region_view("c:1", Reading(10.0, status()), Reading(12.0, status(scale=3, slow=True)))
    screen.print(view([region, RegionView("west", "d:1", "no controller answers at d:1 (UNAVAILABLE)")]))
    text = screen.export_text()
    screen.file.close()
    for part in (
        "east",
        "m/0",
        "75%",
        "50/100",
        "rank 1",
        "MFU 50%, MBU 40%",
        "slow",
        "west  d:1  no controller answers",
    ):
        assert part in text


def test_a_gauge_is_full_when_all_is_held() -> None:
    assert (gauge(0), gauge(0.5), gauge(1), gauge(7)) == (" " * 8, "█" * 4 + " " * 4, "█" * 8, "█" * 8)


def test_places_are_the_own_region_and_the_others() -> None:
    config = parse_config(
        {
            "region": "east",
            "models": [{"name": "m"}],
            "regions": [{"name": "west", "controllers": ["10.0.0.1:1", "10.0.0.2:1"]}],
        }
    )
    assert [(place.region, len(place.controllers)) for place in places_of(config)] == [("east", 1), ("west", 2)]
