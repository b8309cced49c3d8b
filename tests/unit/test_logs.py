"""Log lines as they are written and read back; and which of them belong to a request."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli.logs import command, of_request
from cluster.config import LogConfig
from cluster.logs import KEPT_SECONDS, about, configure_logging, log_directory


@pytest.fixture(autouse=True)
def _own_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give the root logger back as it was, and keep files in the test's own place."""
    monkeypatch.setenv("ARGOSY_STATE", str(tmp_path))
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


def written(region: str = "here") -> list[dict[str, object]]:
    files = sorted(log_directory(region).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_line_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogConfig(format="json"), role="engine", region="here", replica="m/0", epoch=3)
    logging.getLogger("a.b").warning("lost %d", 2, extra=about(request="req_1", tenant="acme"))
    (line,) = written()
    assert json.loads(capsys.readouterr().err) == line
    time_of = line.pop("time")
    assert isinstance(time_of, str)
    assert time_of.endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "a.b",
        "message": "lost 2",
        "role": "engine",
        "region": "here",
        "replica": "m/0",
        "epoch": 3,
        "request": "req_1",
        "tenant": "acme",
    }


def test_text_is_for_people_and_files_are_this_users_alone(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(role="engine", region="here", replica="m/0")
    logging.getLogger("a").info("100 % fine", extra=about(request="req_1"))
    assert " INFO role=engine region=here replica=m/0 request=req_1 a: 100 % fine" in capsys.readouterr().err
    (file,) = log_directory("here").iterdir()
    assert file.name == f"engine-m_0-{os.getpid()}.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_files_can_be_off_and_a_full_disk_is_no_reason_to_stop(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configure_logging(LogConfig(files=False), role="router", region="here")
    assert not log_directory("here").exists()
    (tmp_path / "broken").write_text("in the way")
    configure_logging(role="router", region="broken")
    logging.getLogger("a").info("still here")
    said = capsys.readouterr().err
    assert "no log file" in said
    assert "still here" in said


def test_old_files_are_deleted() -> None:
    log_directory("here").mkdir(parents=True)
    old, new = log_directory("here") / "router-1.jsonl", log_directory("here") / "router-2.jsonl"
    for path, age in ((old, 2 * KEPT_SECONDS), (new, KEPT_SECONDS / 2)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    configure_logging(role="router", region="here")
    assert (old.exists(), new.exists()) == (False, True)


def line(at: int, level: str = "info", **fields: object) -> dict[str, object]:
    return {"time": f"2026-01-01T00:00:{at:02}", "level": level, "logger": "x", "message": "m", **fields}


def test_a_request_brings_what_went_wrong_where_it_was() -> None:
    at = {"replica": "m/0", "epoch": 1}
    before = line(0, "error", **at)
    first = line(1, request="r", **at)
    lost = line(2, "error", **at, stage=1)
    fine = line(3, "info", **at)
    elsewhere = line(3, "error", replica="m/1", epoch=1)
    next_epoch = line(3, "error", replica="m/0", epoch=2)
    others = line(4, "warning", request="other", **at)
    last = line(5, request="r")
    after = line(6, "error", **at)
    lines = [before, first, lost, fine, elsewhere, next_epoch, others, last, after]
    assert of_request(lines, "r") == [first, lost, last]


def test_the_command_merges_files_by_time_and_passes_over_damage() -> None:
    directory = log_directory("local")
    directory.mkdir(parents=True)
    (directory / "a.jsonl").write_text(json.dumps(line(2)) + "\nnot json\n[1]\n")
    (directory / "b.jsonl").write_text(json.dumps(line(1, "warning")) + "\n" + json.dumps(line(3)))  # no end of line
    shown = CliRunner().invoke(command, ["--json"], catch_exceptions=False)
    assert [json.loads(text)["time"][-2:] for text in shown.output.splitlines()] == ["01", "02"]
    warnings = CliRunner().invoke(command, ["--level", "warning"], catch_exceptions=False)
    assert len(warnings.output.splitlines()) == 1
    missing = CliRunner().invoke(command, ["--request", "r"])
    assert missing.exit_code == 1
    assert "no line about r" in missing.output
