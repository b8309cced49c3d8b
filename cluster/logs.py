"""The log of every process: lines to read or JSON on stderr, and JSON lines in the state directory for `argosy logs`.

Each line says which region, replica, epoch and rank it is about, and, where it is about a request, which one of which
tenant. Knows logging and files; nothing here ever sees a prompt, an answer or a credential.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import logging.handlers
import os
import re
import sys
import time
from pathlib import Path

from cluster.config import LogConfig, default_state

SUFFIX = ".jsonl"
MAX_BYTES = 16 * 1024 * 1024
"""Of one file, before it is put aside; one older one is kept."""
KEPT_SECONDS = 7 * 24 * 3600
"""Files that nobody has written to for so long are deleted."""


def about(**fields: object) -> dict[str, dict[str, object]]:
    """For a log call's `extra`: what this one line is about, such as request and tenant."""
    return {"about": fields}


def log_directory(region: str) -> Path:
    """Where the processes of a region on this machine keep their JSON lines."""
    return default_state() / region / "logs"


def configure_logging(log: LogConfig | None = None, **process: object) -> None:
    """Send this process's log to stderr, where Ray's log files pick it up, and to a file of its own.

    Args:
        log: how; the default configuration's way if None.
        process: heads every line: role, region, replica, epoch, stage, rank. Files need a region.
    """
    log = log or LogConfig()
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(JsonLines(process) if log.format == "json" else TextLines(process))
    handlers: list[logging.Handler] = [stderr]
    if log.files and (region := process.get("region")):
        try:
            handlers.append(_file(log_directory(str(region)), process))
        except OSError as error:
            stderr.handle(_complaint(f"no log file: {error}"))
    root = logging.getLogger()
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(logging.INFO)


class TextLines(logging.Formatter):
    """`TIME LEVEL region=… replica=… request=… logger: message`."""

    def __init__(self, process: dict[str, object]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(heading)s%(name)s: %(message)s")
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields = {**self._process, **getattr(record, "about", {})}
        record.heading = "".join(f"{name}={value} " for name, value in fields.items())
        return super().format(record)


class JsonLines(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message, then what it is about."""

    def __init__(self, process: dict[str, object]) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _file(directory: Path, process: dict[str, object]) -> logging.Handler:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    _delete_old(directory)
    parts = (process.get(name) for name in ("role", "replica", "epoch", "stage", "rank"))
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", str(part)) for part in parts if part is not None)
    path = directory / f"{name}-{os.getpid()}{SUFFIX}"
    path.touch(mode=0o600)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(JsonLines(process))
    return handler


def _delete_old(directory: Path) -> None:
    for path in directory.glob(f"*{SUFFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()


def _complaint(message: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
