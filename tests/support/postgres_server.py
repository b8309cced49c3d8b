"""A PostgreSQL server of the test's own, from the machine's installation, on a Unix socket alone. Knows no tables."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def programs() -> Path | None:
    """Where initdb and pg_ctl are; None if PostgreSQL is not installed."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    return INSTALLED[-1] if INSTALLED else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server; its URL. It refuses to run as root, so it runs as `nobody` where the test is root."""
    binaries = programs()
    assert binaries is not None, "PostgreSQL is not installed (Debian: postgresql)"
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="argosy-pg-", dir="/tmp"))
    try:
        if user:
            shutil.chown(folder, user)
        run = {"user": user, "check": True, "cwd": folder, "stdout": subprocess.DEVNULL, "timeout": 60}
        data, log = folder / "data", folder / "log"
        init = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "argosy",
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run(init, **run)  # type: ignore[call-overload]
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c shared_buffers=16MB"
        control = [binaries / "pg_ctl", "-D", data, "-l", log, "-w"]
        subprocess.run([*control, "-o", options, "start"], **run)  # type: ignore[call-overload]
        try:
            yield f"postgresql://argosy@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)  # type: ignore[call-overload]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
