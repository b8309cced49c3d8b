"""A Ray cluster of several nodes on this machine, in token mode on loopback, with the Jobs API: real `ray start`s."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import requests

from tests.support.region import MARK, free_ports, kill_marked, wait_until

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
START_SECONDS = 90.0
HEAD_HOST = "127.0.0.2"
"""Each node has a loopback address of its own. Ray replaces 127.0.0.1 by an address that others can reach."""
OBJECT_STORE_BYTES = 80 * 1024 * 1024


class RayHead:
    """A head, and nodes that come and go. Everything is marked, and ends with it."""

    def __init__(self, directory: Path, cpus: int) -> None:
        self.mark = uuid.uuid4().hex
        self.log = directory / "ray.log"
        token = directory / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ARGOSY_STATE": str(directory / "state"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        gcs, dashboard, client = free_ports(3)
        self.gcs, self.jobs = f"{HEAD_HOST}:{gcs}", f"http://127.0.0.1:{dashboard}"
        # Unix sockets have short names only.
        self._sockets = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self._start(
            cpus, "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            "--include-dashboard=true", f"--temp-dir={self._sockets.name}", f"--ray-client-server-port={client}",
        )  # fmt: skip

    def __enter__(self) -> Self:
        # The head answers some time before it counts itself.
        wait_until(lambda: self._answers() and self._living() > 0, START_SECONDS, "the Jobs API of the head")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self._nodes):
            self._end(node)
        kill_marked(self.mark)
        self._sockets.cleanup()

    @property
    def authorization(self) -> dict[str, str]:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        return {"Authorization": f"Bearer {token}"}

    def add_node(self, cpus: int, *arguments: str) -> subprocess.Popen[bytes]:
        """One more node, once the head knows it; `arguments` are more of `ray start`."""
        before = self._living()
        node = self._start(cpus, f"--address={self.gcs}", *arguments)

        def is_there() -> bool:
            assert node.poll() is None, self.log.read_text()
            return self._living() > before

        wait_until(is_there, START_SECONDS, "another node")
        return node

    def remove_node(self, node: subprocess.Popen[bytes]) -> None:
        """As if its power were cut: every process of it, at once."""
        self._nodes.remove(node)
        below = psutil.Process(node.pid).children(recursive=True)
        for process in [psutil.Process(node.pid), *below]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        node.wait()

    def _start(self, cpus: int, *arguments: str) -> subprocess.Popen[bytes]:
        host = f"127.0.0.{int(HEAD_HOST.rpartition('.')[2]) + self._started}"
        self._started += 1
        agent, agent_grpc, metrics = free_ports(3)
        command = [
            *RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={host}", f"--num-cpus={cpus}",
            "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}", "--min-worker-port=0",
            "--max-worker-port=0", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}", *arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            # A session of its own: a Ctrl-C that a test sends to a command must not reach it.
            node = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._nodes.append(node)
        return node

    def _answers(self) -> bool:
        assert self._nodes[0].poll() is None, self.log.read_text()
        try:
            return requests.get(f"{self.jobs}/api/jobs/", headers=self.authorization, timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def _living(self) -> int:
        answer = requests.get(f"{self.jobs}/nodes?view=summary", headers=self.authorization, timeout=10)
        return sum(node["raylet"].get("state") == "ALIVE" for node in answer.json()["data"]["summary"])

    def _end(self, node: subprocess.Popen[bytes]) -> None:
        node.send_signal(signal.SIGTERM)
        try:
            node.wait(20)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
