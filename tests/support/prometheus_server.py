"""A real Prometheus on a free port of this machine, from the operating system's package."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.region import free_ports


def tool(name: str) -> str:
    """The program's path; skips the test where the package is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; Debian and Ubuntu have it in the package `prometheus`")
    return found


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    address: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of now."""
        answer = self._get(f"query?{urllib.parse.urlencode({'query': expression})}")
        return answer["result"]

    def targets(self) -> list[dict[str, Any]]:
        return self._get("targets?state=active")["activeTargets"]

    def _get(self, what: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{what}", timeout=20) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{what}: {error.read().decode()}") from None


@contextlib.contextmanager
def running_prometheus(directory: Path, discovery: str, rules: Sequence[Path]) -> Iterator[Prometheus]:
    """Scrape what the URL `discovery` lists, every second."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [
            {"job_name": "argosy", "http_sd_configs": [{"url": discovery, "refresh_interval": "1s"}]},
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    command = [tool("prometheus"), f"--config.file={directory / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={address}"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None, (directory / "prometheus.log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                break
            assert time.monotonic() < end, "Prometheus does not start"
            time.sleep(0.1)
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()
