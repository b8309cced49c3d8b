"""However `argosy` ends, nothing that it started goes on: no process, no listener, no private directory."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support.region import START_SECONDS, CommandRun, UpRun, marked

SHARED_MEMORY = Path("/dev/shm")

pytestmark = [pytest.mark.ray, pytest.mark.model]


def test_demo_answers_shows_where_the_time_went_and_leaves_nothing(smollm2_dir: Path, tmp_path: Path) -> None:
    run = CommandRun(tmp_path, "demo", "What is the capital of France? Answer in one sentence.")
    try:
        assert run.wait(START_SECONDS) == 0, run.text
        text = run.text
        for words in ("tensor 2 × pipeline 2", "Paris", "placement and ranks", "Time to first token", "tokens/s"):
            assert words in text
        assert "raylet" not in text
        run.assert_nothing_left()
    finally:
        run.kill_all()


def test_sigterm_while_ranks_load_ends_everything(smollm2_dir: Path, tmp_path: Path) -> None:
    run = UpRun(tmp_path)
    try:
        run.wait_said("importing", START_SECONDS)
        directory = run.directory
        run.process.send_signal(signal.SIGTERM)
        assert run.wait(30) == 128 + signal.SIGTERM, run.text
        run.assert_nothing_left()
        assert not directory.exists()
    finally:
        run.kill_all()


def test_a_second_ctrl_c_ends_everything_at_once(smollm2_dir: Path, tmp_path: Path) -> None:
    run = UpRun(tmp_path)
    try:
        run.wait_for(lambda: any(p.name() == "raylet" for p in marked(run.mark)), START_SECONDS, "a raylet")
        directory = run.directory
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        run.process.send_signal(signal.SIGINT)
        assert run.wait(10) == 128 + signal.SIGINT, run.text
        run.assert_nothing_left()
        assert not directory.exists()
    finally:
        run.kill_all()


def test_kill_9_of_the_command_takes_the_region_along(smollm2_dir: Path, tmp_path: Path) -> None:
    run = UpRun(tmp_path)
    try:
        run.wait_said("loading", START_SECONDS)
        assert len(marked(run.mark)) > 8
        directory, segments = run.directory, set(SHARED_MEMORY.glob("argosy-*"))
        run.process.kill()
        run.wait()
        run.assert_nothing_left(20)
        assert not segments & set(SHARED_MEMORY.glob("argosy-*"))
        shutil.rmtree(directory)
    finally:
        run.kill_all()
