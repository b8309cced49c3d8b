"""Containers of a rendered chart as plain processes: their own commands and environment, on this machine's file system
and loopback interface. Knows Kubernetes' substitutions; no cluster."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.support.helm import Object, named, of_kind
from tests.support.region import MARK, marked, wait_until

POD_IP = "127.0.0.2"
"""Loopback too, but not 127.0.0.1, in whose place Ray puts the machine's address on the network."""


class PodMachine:
    """One machine in the place of all nodes: where mounts lie, and which ports stand for those of the pods."""

    def __init__(self, directory: Path, objects: list[Object], replacements: Mapping[str, str]) -> None:
        """
        Args:
            directory: short, since sockets lie below it; takes what the pods mount and write.
            replacements: further texts of commands, environment and files, and what stands for them here.
        """
        self.mark = uuid.uuid4().hex
        self._directory = directory
        self._objects = objects
        self._replacements = {
            **replacements,
            "/etc/argosy": str(directory / "etc"),
            "/var/lib/argosy": str(directory / "var"),
            "$(POD_IP)": POD_IP,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._write_mounts()

    def start(self, container: Object, **differences: str) -> Running:
        """Run a container's command.

        Args:
            differences: options of the command (`node_manager_port`) whose value must differ from other pods'.
        """
        command = [self._here(word) for word in container["command"]]
        for option, value in differences.items():
            prefix = f"--{option.replace('_', '-')}="
            assert sum(word.startswith(prefix) for word in command) == 1, (prefix, command)
            command = [f"{prefix}{value}" if word.startswith(prefix) else word for word in command]
        log = self._directory / f"{container['name']}-{len(self._processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [Path(sys.executable).with_name(command[0]), *command[1:]],
                env=self._environment(container),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._processes.append(process)
        return Running(process, log)

    def run(self, container: Object, *command: str) -> str:
        """What `kubectl exec` prints.

        Raises:
            AssertionError: the command fails.
        """
        program, *arguments = [self._here(word) for word in command]
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            env=self._environment(container),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> None:
        """Kill whatever still runs of what was started here, whoever its parent is by now."""

        def all_gone() -> bool:
            for process in marked(self.mark):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            return not marked(self.mark)

        wait_until(all_gone, 30, "end of all processes")
        for process in self._processes:
            process.wait(10)

    def _environment(self, container: Object) -> dict[str, str]:
        """As the container's, where the machine's own would not do; without a kernel cache of its own, as that takes a
        minute to fill."""
        given = {entry["name"]: self._value(entry) for entry in container["env"]}
        del given["HOME"]
        given.pop("NUMBA_CACHE_DIR", None)
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**own, **given, MARK: self.mark, "RAY_TMPDIR": str(self._directory / "ray")}

    def _value(self, entry: Object) -> str:
        if "value" in entry:
            return self._here(entry["value"])
        source = entry["valueFrom"]
        if "fieldRef" in source:
            assert source["fieldRef"] == {"fieldPath": "status.podIP"}
            return POD_IP
        reference = source["secretKeyRef"]
        return base64.b64decode(named(self._objects, "Secret", reference["name"])["data"][reference["key"]]).decode()

    def _here(self, text: str) -> str:
        """All at once, so that no replacement is replaced."""
        pattern = "|".join(re.escape(key) for key in sorted(self._replacements, key=len, reverse=True))
        return re.sub(pattern, lambda match: self._replacements[match.group()], text)

    def _write_mounts(self) -> None:
        config = self._directory / "etc" / "config"
        config.mkdir(parents=True)
        text = named(self._objects, "ConfigMap", "r-argosy")["data"]["argosy.yaml"]
        (config / "argosy.yaml").write_text(self._here(text))
        for secret in of_kind(self._objects, "Secret"):
            if found := re.fullmatch(r"r-argosy-peer-(\w+)", secret["metadata"]["name"]):
                folder = self._directory / "etc" / "peers" / found.group(1)
                folder.mkdir(parents=True)
                for name, data in secret["data"].items():
                    (folder / name).write_bytes(base64.b64decode(data))


class Running:
    """One container's process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_said(self, words: str, seconds: float) -> None:
        """Raises AssertionError: it ended before, or did not say it in time."""

        def said() -> bool:
            if words in self.text:
                return True
            assert self.process.poll() is None, self.text
            return False

        wait_until(said, seconds, f"{words!r} in {self.text[-2000:]}")
