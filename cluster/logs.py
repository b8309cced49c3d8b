"""One text line a log record, headed by which replica, epoch and rank it is about. Knows logging, nothing else."""

from __future__ import annotations

import logging
import sys


def configure_logging(**about: object) -> None:
    """Send this process's log to stderr, where Ray's log files pick it up; `about` heads every line."""
    heading = " ".join(f"{name}={value}" for name, value in about.items()).replace("%", "%%")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {heading} %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
