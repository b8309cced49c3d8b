"""`argosy up` as a child process, and what it leaves behind: nothing, if all is well."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil

from argosy.internal.v1 import control_pb2, control_pb2_grpc

ARGOSY = [sys.executable, "-m", "cluster.cli"]
MARK = "ARGOSY_TEST_MARK"
START_SECONDS = 150.0


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in sockets]


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited the mark, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_marked(mark: str) -> None:
    """Kill whatever still has the mark."""
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until `condition` holds; fails naming `what` otherwise."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class CommandRun:
    """One `argosy` command as a child, with everything that it starts marked."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.mark = uuid.uuid4().hex
        self.output = directory / f"{self.mark}.log"
        self.state = directory / "state"
        environment = {**os.environ, MARK: self.mark, "ARGOSY_STATE": str(self.state)}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*ARGOSY, *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def directory(self) -> Path:
        """Its private directory."""
        found = re.search(r"logs are in (\S+)", self.text)
        assert found, self.text
        return Path(found.group(1))

    def wait_for(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Poll until `condition` holds; fails at once if the command ends before."""

        def holds() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, self.text
            return False

        wait_until(holds, seconds, what)

    def wait_said(self, words: str, seconds: float) -> None:
        self.wait_for(lambda: words in self.text, seconds, words)

    def wait(self, seconds: float = 60.0) -> int:
        return self.process.wait(seconds)

    def assert_nothing_left(self, seconds: float = 10.0) -> None:
        """Every process that it started is gone, and with them every listener and shared-memory segment."""
        wait_until(lambda: not marked(self.mark), seconds, f"end of {[p.cmdline() for p in marked(self.mark)]}")

    def kill_all(self) -> None:
        """Last resort of a failed test."""
        kill_marked(self.mark)
        self.process.wait(10)


class UpRun(CommandRun):
    """A whole region: SmolLM2, tensor 2 × pipeline 2, on ports of its own."""

    def __init__(self, directory: Path, sections: dict[str, object] | None = None, **engine: object) -> None:
        router, controller = free_ports(2)
        self.router, self.controller = f"127.0.0.1:{router}", f"127.0.0.1:{controller}"
        self.file = directory / f"argosy-{router}.yaml"
        model = {"name": "smollm2-135m-instruct", "tensor_parallel": 2, "pipeline_parallel": 2, "device": "cpu"}
        configuration = {
            "models": [{**model, "engine": {"kv_cache": "64MiB", **engine}}],
            "router": {"listen": self.router, "reflection": True, "drain_seconds": 2},
            "controller": {"listen": self.controller},
            **(sections or {}),
        }
        self.file.write_text(json.dumps(configuration))
        super().__init__(directory, "up", "-f", self.file)

    def wait_ready(self) -> None:
        self.wait_said("Ctrl-C ends it.", START_SECONDS)

    def status(self) -> control_pb2.GetStatusResponse:
        with grpc.insecure_channel(self.controller) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            return stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()
