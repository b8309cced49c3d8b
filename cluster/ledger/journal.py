"""A file that takes operations while the database cannot: one JSON object a line. Knows lines; no tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from cluster.ledger.operations import Operation, from_json, to_json


class Journal:
    """Operations of one router that are not in the database yet, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def append(self, operations: Iterable[Operation]) -> None:
        """Returns once they survive the loss of power."""
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self._file, b"".join(json.dumps(to_json(entry)).encode() + b"\n" for entry in operations))
        os.fsync(self._file)

    @property
    def is_empty(self) -> bool:
        return self._file is None

    def clear(self) -> None:
        """They are in the database now."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._path.unlink(missing_ok=True)

    def read(self) -> list[Operation]:
        return read_journal(self._path)


def read_journal(path: Path) -> list[Operation]:
    """What a journal holds. A last line that was cut off was never answered for, so it is left out."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [from_json(json.loads(line)) for line in whole.splitlines()]
