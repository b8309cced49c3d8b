"""The output file: what it holds already, and how lines are added so that a crash loses none and repeats none.

A line counts once it ends in a newline. Lines are appended and synced in groups, off the event loop; a line that a
crash tore is cut off when the file is opened again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.batch.lines import record_key
from cluster.errors import ConfigurationError


class AnswerFile:
    """The output of one batch. One process at a time holds it."""

    def __init__(self, path: Path) -> None:
        """Open or create it, and cut off a torn last line.

        Raises:
            ConfigurationError: it cannot be written, is held by another process, or is not the output of a batch.
        """
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(f"--out: {path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigurationError(f"--out: another process is writing {path}; wait for it, or stop it") from None
        try:
            self.done = self._scan(path)
        except ConfigurationError:
            self._file.close()
            raise
        _sync_directory(path.parent)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._failure: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    async def add(self, record: dict[str, Any]) -> None:
        """Append one line; returns once it is on the disk.

        Raises:
            OSError: the disk is full or gone.
        """
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        on_disk = asyncio.get_running_loop().create_future()
        self._waiting.append((line, on_disk))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        await on_disk

    async def _write(self) -> None:
        """Write whatever waits, a group at a time, until nothing does."""
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                # Behind a failed write the file may end in half a line; nothing may follow that.
                if self._failure is None:
                    await asyncio.to_thread(self._append, b"".join(line for line, _ in group))
            except OSError as error:
                self._failure = error
            for _, on_disk in group:
                if not on_disk.done() and self._failure is not None:
                    on_disk.set_exception(self._failure)
                elif not on_disk.done():
                    on_disk.set_result(None)
        self._writer = None

    def _append(self, group: bytes) -> None:
        view = memoryview(group)
        while view:
            view = view[self._file.write(view) :]
        os.fdatasync(self._file.fileno())

    def _scan(self, path: Path) -> set[str]:
        """The keys of all whole lines; what follows the last of them is cut off."""
        done: set[str] = set()
        whole = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                key = None
                with contextlib.suppress(ValueError):
                    key = record_key(json.loads(line))
                if key is None or key in done:
                    problem = "repeats a line" if key else "is not a line of a batch's output"
                    raise ConfigurationError(
                        f"--out: {path} line {number} {problem}; name a new file, or move this one"
                    )
                done.add(key)
                whole += len(line)
        self._file.truncate(whole)
        return done


def _sync_directory(directory: Path) -> None:
    """A new file's name is on the disk only once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
