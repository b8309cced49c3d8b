"""docs/deploy.md does as it says: its commands are run on this machine, or looked up in what the chart renders."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.config import parse_config
from tests.support.helm import ROOT, Object, helm, named, pod_templates
from tests.support.region import MARK, free_ports, marked, wait_until

PAGE = ROOT / "docs" / "deploy.md"
BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, with what the mark before it says."""

    section: str
    mark: str
    language: str
    text: str

    @property
    def quoted(self) -> str:
        """What the mark has between quotes."""
        return self.mark.partition('"')[2].rpartition('"')[0]


def blocks() -> list[Block]:
    page = PAGE.read_text()
    found = []
    for match in BLOCK.finditer(page):
        section = re.findall(r"^## (.+)$", page[: match.start()], re.MULTILINE)[-1]
        found.append(Block(section, match["mark"] or "", match["language"], match["text"]))
    return found


class Reader:
    """Somebody at this machine who does what the page says, with other ports, addresses and directories."""

    def __init__(self, directory: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._directory = directory
        self._state = directory / "shell"
        self._state.touch()
        self._processes: list[subprocess.Popen[bytes]] = []
        router, controller, gcs = free_ports(3)
        self._instead = {
            "50051": str(router),
            "50052": str(controller),
            "6379": str(gcs),
            "10.0.0.1": "127.0.0.2",
            "10.0.0.2": "127.0.0.3",
            "/etc/argosy": str(directory / "etc"),
            "/var/lib/argosy": str(directory / "var"),
        }
        (directory / "etc").mkdir()
        (directory / "examples").mkdir()
        (directory / "examples" / "argosy.yaml").write_text(self.here((ROOT / "examples" / "argosy.yaml").read_text()))

    def here(self, text: str) -> str:
        pattern = "|".join(re.escape(key) for key in self._instead)
        return re.sub(pattern, lambda match: self._instead[match.group()], text)

    def write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(self.here(text))

    def run(self, text: str) -> str:
        """Run commands in the shell that ran those before: what is exported stays.

        Raises:
            AssertionError: one fails.
        """
        script = f"set -euo pipefail\nsource {self._state}\n{self.here(text)}\nexport -p > {self._state}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
        return done.stdout

    def leave_running(self, text: str, until: str) -> None:
        log = self._directory / f"{uuid.uuid4().hex}.log"
        script = f"source {self._state}\nexec {self.here(text).strip()}\n"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self._directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        self._processes.append(process)

        def said() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")
            return until in log.read_text(errors="replace")

        wait_until(said, 200, f"{until!r} of {text}")

    def end(self) -> None:
        """Kill whatever still runs, whoever its parent is by now."""

        def all_gone() -> bool:
            for process in marked(self.mark):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return not marked(self.mark)

        wait_until(all_gone, 30, "end of all processes")
        for process in self._processes:
            process.wait(10)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            MARK: self.mark,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ARGOSY_STATE": str(self._directory / "state"),
            "RAY_TMPDIR": str(self._directory / "ray"),
        }


@pytest.fixture
def reader() -> Iterator[Reader]:
    # Not pytest's own directory: the paths of Ray's sockets must be short.
    directory = Path(tempfile.mkdtemp(prefix="docs-", dir="/tmp"))
    somebody = Reader(directory)
    try:
        yield somebody
    finally:
        somebody.end()
        shutil.rmtree(directory)


def test_every_block_of_commands_is_run_or_says_that_it_needs_a_cluster() -> None:
    for block in blocks():
        if block.language == "sh":
            assert re.fullmatch(r'run|run: (says|stays until) ".+"|cluster', block.mark), block.text
        else:
            assert block.mark.startswith(("file: ", "values: ")), block.text


@pytest.mark.ray
@pytest.mark.model
@pytest.mark.parametrize("section", ["One machine", "Ray nodes by hand"])
def test_the_page_leads_from_nothing_to_a_token(section: str, reader: Reader, smollm2_dir: Path) -> None:
    own = [block for block in blocks() if block.section == section]
    assert [block for block in own if block.mark.startswith("run: says")], "it ends with an answer"
    for block in own:
        if block.mark.startswith("file: "):
            reader.write(block.mark.removeprefix("file: "), block.text)
        elif block.mark.startswith("run: stays"):
            reader.leave_running(block.text, block.quoted)
        else:
            assert block.quoted in reader.run(block.text)


def test_commands_for_a_cluster_name_what_the_chart_makes(tmp_path: Path) -> None:
    for block in blocks():
        if block.mark.startswith("values: "):
            (tmp_path / block.mark.removeprefix("values: ")).write_text(block.text)
    objects: list[Object] = []
    for block in blocks():
        if block.mark != "cluster":
            continue
        for line in filter(None, block.text.splitlines()):
            program, *words = shlex.split(line)
            if program == "helm":
                objects = rendered(words, tmp_path)
            else:
                assert program == "kubectl"
                assert words[:2] == ["-n", "serving"]
                look_up(words[2:], objects)


def rendered(words: list[str], directory: Path) -> list[Object]:
    """What `helm install` or `helm upgrade` with these words would bring."""
    command, release, chart, *options = words
    assert command in ("install", "upgrade")
    known_to_template = [word for word in options if word not in ("--create-namespace", "--reuse-values")]
    here = [str(directory / word) if (directory / word).exists() else word for word in known_to_template]
    here = [str(ROOT / word) if word.startswith("deploy/") else word for word in here]
    done = helm("template", release, ROOT / chart, *here)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def look_up(words: list[str], objects: list[Object]) -> None:
    """The workloads, services, containers and labels that a kubectl command names are there."""
    kinds = {"deployment": "Deployment", "statefulset": "StatefulSet", "service": "Service"}
    for kind, name in re.findall(r"\b(deployment|statefulset|service)[/ ]([\w-]+)", " ".join(words)):
        target = named(objects, kinds[kind], name)
        if "-c" in words:
            container = words[words.index("-c") + 1]
            assert container in [item["name"] for item in target["spec"]["template"]["spec"]["containers"]]
    for label in (word for before, word in pairwise(words) if before == "-l"):
        key, _, value = label.partition("=")
        assert [name for name, pod in pod_templates(objects) if pod["metadata"]["labels"].get(key) == value], label


def test_each_region_knows_the_two_others(tmp_path: Path) -> None:
    (values,) = [block for block in blocks() if block.mark.startswith("values: ")]
    file = tmp_path / "values.yaml"
    file.write_text(values.text)
    objects = rendered(["install", "argosy", "deploy/helm/argosy", "--values", str(file)], tmp_path)
    config = parse_config(yaml.safe_load(named(objects, "ConfigMap", "argosy")["data"]["argosy.yaml"]))
    assert (config.region, [region.name for region in config.regions]) == ("eu", ["us", "asia"])
    policy = named(objects, "NetworkPolicy", "argosy-ray")["spec"]["ingress"][0]["from"]
    assert {"ipBlock": {"cidr": "10.20.0.0/16"}} in policy
