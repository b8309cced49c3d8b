"""What a newcomer types: make's targets and their quoting, and pins that a fresh machine can install."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def echoing(tmp_path: Path) -> list[str]:
    """Arguments that put an `argosy` which only repeats its arguments in the place of the real one."""
    (tmp_path / "ready").touch()
    script = tmp_path / "argosy"
    script.write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho\n')
    script.chmod(0o755)
    return [f"BIN={tmp_path}", f"READY={tmp_path / 'ready'}"]


def test_help_lists_every_command() -> None:
    listed = re.findall(r"^  make ([a-z-]+) ", make().stdout, re.MULTILINE)
    assert {"help", "demo", "serve", "test", "check", "proto", "bench", "clean"} <= set(listed)


@pytest.mark.parametrize("prompt", ['it\'s "quoted"', "costs $5 and $(HOME) or ${HOME}", "a; b && c # d", "日本 `ls`"])
def test_demo_passes_the_prompt_through_untouched(echoing: list[str], prompt: str) -> None:
    result = make("demo", f"PROMPT={prompt}", *echoing)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["<pull><smollm2-135m-instruct>", f"<demo><--><{prompt}>"]


def test_demo_has_a_prompt_of_its_own(echoing: list[str]) -> None:
    assert make("demo", *echoing).stdout.splitlines()[-1].startswith("<demo><--><What is the capital of France?")


def test_an_old_python_is_told_so(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.0\nexit 1\n')
    old.chmod(0o755)
    result = make("setup", f"PYTHON={old}", f"READY={tmp_path / 'ready'}")
    assert result.returncode != 0
    assert "Argosy needs Python 3.11 or newer" in result.stderr
    assert "is Python 3.9.0" in result.stderr


def test_a_python_without_venv_is_told_the_package(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n')
    bare.chmod(0o755)
    result = make("setup", f"PYTHON={bare}", f"READY={tmp_path / 'ready'}")
    assert result.returncode != 0
    assert "install python3-venv" in result.stderr


def test_ci_runs_check_and_the_whole_suite() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert "+" not in version, f"{line}: a local label exists on one machine only"
            pins[name] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name != "argosy":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_the_front_installs_without_torch_and_ray() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    front = [*project["dependencies"], *project["optional-dependencies"]["router"]]
    assert not {Requirement(text).name for text in front} & {"torch", "ray", "transformers", "huggingface-hub", "gguf"}
