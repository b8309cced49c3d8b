"""Holding the ledger against its windows, engines and clients: what must agree, what may differ, what is drift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import argosy, usage
from cluster.cli.reconcile import read_clients
from cluster.control.delivered import Delivered
from cluster.errors import ConfigurationError
from cluster.ids import Epoch, ReplicaId
from cluster.ledger.reconcile import (
    Billed,
    ClientCount,
    EngineCount,
    Line,
    against_clients,
    against_engines,
    against_windows,
)

CHARGES = json.dumps({"tokens_per_day": 7, "concurrent_streams": 0, "requests_per_minute": 3})
ROWS = [
    ("acme", CHARGES, 110, 10, 40, "complete"),
    ("acme", CHARGES, 110, 10, 0, None),
    ("beta", CHARGES, 50, 0, 0, "cancelled"),
]
HELD = {
    ("acme", "tokens_per_day", 7): 160,
    ("acme", "concurrent_streams", 0): 1,
    ("acme", "requests_per_minute", 3): 2,
    ("beta", "tokens_per_day", 7): 0,
}


def test_windows_hold_what_their_requests_reserved_or_used() -> None:
    lines = against_windows(ROWS, HELD)
    assert [line.drift for line in lines] == [0, 0, 0, 0]
    leaked = against_windows(ROWS, {**HELD, ("beta", "tokens_per_day", 7): 50})
    assert [line for line in leaked if line.drift] == [Line("window tokens_per_day of beta", 0, 50, 50)]


@pytest.mark.parametrize(
    ("billed", "engines", "drift"),
    [
        (Billed(100), EngineCount(100), 0),
        (Billed(100), EngineCount(130), 0),
        (Billed(100), EngineCount(99), 1),
        (Billed(100, crashed_requests=1), EngineCount(68), 0),
        (Billed(100, crashed_requests=1), EngineCount(67), 1),
        (Billed(100), EngineCount(20, lost_epochs=1), 0),
    ],
)
def test_nothing_is_billed_that_no_engine_made(billed: Billed, engines: EngineCount, drift: int) -> None:
    [line] = against_engines({"m": billed}, {"m": engines})
    assert line.drift == drift
    assert bool(line.note) is (billed.crashed_requests + engines.lost_epochs > 0 or engines.delivered_tokens > 100)


def test_a_model_without_engines_was_billed_for_nothing_made() -> None:
    assert [line.drift for line in against_engines({"gone": Billed(5)}, {})] == [5]


def test_clients_counted_what_they_are_billed() -> None:
    rows = {"whole": ("complete", 10, 40), "cut": ("cancelled", 10, 30), "open": ("", 0, 0)}
    fine = [ClientCount("whole", 40, 10), ClientCount("cut", 25), ClientCount("open", 0)]
    assert against_clients(rows, fine) == [Line("clients", 70, 65, 0, "5 accepted and not read before the end")]
    wrong = [ClientCount("whole", 39), ClientCount("cut", 31), ClientCount("unknown", 3), ClientCount("whole", 40, 11)]
    _, *found = against_clients(rows, wrong)
    assert [line.drift for line in found] == [1, -1, -3, -1]


def test_counts_of_epochs_add_up() -> None:
    delivered, replica = Delivered(), ReplicaId("m/0")
    assert delivered.total(replica) == (0, 0)
    for epoch, tokens in ((1, 5), (1, 9), (2, 0), (2, 4)):
        delivered.hear(replica, Epoch(epoch), tokens)
    assert delivered.total(replica) == (13, 1)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "clients.jsonl"
    file.write_text('{"request_id": "r", "completion_tokens": 3}\n\n{"request_id": "s"}\n')
    with pytest.raises(ConfigurationError, match="line 3"):
        read_clients(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_clients(tmp_path / "missing")


@pytest.mark.parametrize("drift", [0, 3])
def test_drift_is_an_exit_status(drift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(file: Path, clients: Path | None) -> list[Line]:
        return [Line("engines of m", 10, 10 - drift, drift)]

    monkeypatch.setattr(usage, "reconcile", found)
    ran = CliRunner().invoke(argosy, ["usage", "-f", str(tmp_path / "argosy.yaml"), "--reconcile"])
    assert (ran.exit_code, "engines of m" in ran.output) == (2 if drift else 0, True)


def test_the_options_that_go_together_are_named() -> None:
    assert "give -f FILE" in CliRunner().invoke(argosy, ["usage", "--reconcile"]).output
    assert "goes with --reconcile" in CliRunner().invoke(argosy, ["usage", "--clients", "x"]).output
