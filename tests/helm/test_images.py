"""The images' Dockerfile as far as it can be checked without a daemon: lint, stages, users, and what is copied."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.support.helm import CHART, ROOT

DOCKERFILE = ROOT / "deploy" / "images" / "Dockerfile"
IMAGES = ("router", "engine-cpu", "engine-cuda")


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match.group(2)] = [line]
        elif found:
            found[next(reversed(found))].append(line)
    return found


def test_lint_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_no_root_and_says_how_it_is(name: str) -> None:
    instructions = stages()[name]
    assert instructions[0].startswith("FROM base")
    assert "USER 10001:10001" in instructions
    assert not [line for line in instructions if line.startswith(("RUN", "ADD"))], "programs are made in other stages"
    (check,) = [line for line in instructions if line.startswith("HEALTHCHECK")]
    assert check.endswith('CMD ["argosy", "health"]')


def test_the_user_of_the_images_is_the_charts() -> None:
    helpers = (CHART / "templates" / "_helpers.tpl").read_text()
    assert "runAsUser: 10001" in helpers
    assert "useradd --uid 10001" in " ".join(stages()["base"])


def test_bases_and_programs_are_pinned() -> None:
    base = re.search(r"^ARG PYTHON=(\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert base
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base.group(1))
    for name in ("router-programs", "engine-cpu-programs", "engine-cuda-programs"):
        (install,) = [line for line in stages()[name] if line.startswith("RUN")]
        assert "-c /src/constraints.txt" in install


def test_extras_of_the_images_exist_and_the_routers_has_no_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("router", "engine-cpu", "engine-cuda"):
        (named,) = re.findall(r"argosy-\*\.whl\)\[([\w,]+)\]", " ".join(stages()[f"{name}-programs"]))
        packages = " ".join(package for extra in named.split(",") for package in extras[extra])
        assert ("torch==" in packages) == ("ray==" in packages) == (name != "router")


def test_the_context_is_what_the_wheel_is_made_of() -> None:
    """Read as docker reads it: everything out, then some in."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in allowed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        package.partition("/")[0] for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }
    needed = {*packages, "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {"constraints.txt"} == allowed


def test_make_builds_what_the_chart_asks_for(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@"\n')
    docker.chmod(0o755)
    ready = tmp_path / "ready"
    ready.touch()
    done = subprocess.run(
        ["make", "images", f"BIN={Path(sys.executable).parent}", f"READY={ready}", "TORCH_INDEX=file:///wheels"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = dict(re.findall(r"--target (\S+) --tag (\S+)", done.stdout))
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    assert built == {
        "router": f"{images['router']['repository']}:{version}",
        "engine-cpu": f"{images['engine']['repository']}:{version}",
        "engine-cuda": f"{images['engine']['repository']}:{version}-cuda",
    }
    assert done.stdout.count("TORCH_INDEX=file:///wheels") == 1
