"""How ranks of one host come to map the same memory, without leaking it. Knows files and locks, not what is shared.

Rank 0 makes a file, the others map it, and it is unlinked as soon as all have. Until then its maker holds a lock on
it, so that a file left by a killed process is known by its lock being free.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from model.parallel.progress import CollectiveError, CollectiveTimeout
from model.parallel.shared_memory import Bytes, Counter

# A segment starts with one cache line each for: what it is, rank 0's release, the other ranks' arrivals, the counters.
_LINE = 64
_PREFIX = "argosy-"
_MAGIC = 0x3179736F677261  # "argosy1"


class Segment:
    """Memory mapped by `size` ranks of one host: `num_counters` counters and `data_bytes` bytes, all zero at first."""

    def __init__(
        self, name: str, rank: int, size: int, *, num_counters: int, data_bytes: int, timeout_seconds: float
    ) -> None:
        """Map the segment and wait for the other ranks.

        Raises:
            CollectiveTimeout: a rank did not come.
            CollectiveError: no room, the name is in use, or it belongs to someone else.
        """
        digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
        path = _directory() / f"{_PREFIX}{digest}"
        header_bytes = _LINE * (1 + size + num_counters)
        start = -(-header_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        deadline = time.monotonic() + timeout_seconds
        expected = struct.pack("<4q", _MAGIC, size, num_counters, data_bytes)
        if rank == 0:
            mapping = _create(path, name, start + data_bytes, expected, size, deadline)
        else:
            mapping = _attach(path, name, start + data_bytes, expected, rank, deadline)
        self.counters = [Counter(mapping, _LINE * (1 + size + index)) for index in range(num_counters)]
        self.data: Bytes = np.frombuffer(mapping, dtype=np.uint8, count=data_bytes, offset=start)


def _directory() -> Path:
    memory = Path("/dev/shm")  # noqa: S108  files are made 0600 and checked for their owner
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def _create(path: Path, name: str, num_bytes: int, expected: bytes, size: int, deadline: float) -> mmap.mmap:
    """Make the file under a private name, put it in place whole, wait for the others and unlink it."""
    _sweep()
    fresh = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}")
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # The lock says that the maker lives; a killed process drops it.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CollectiveError(
                f"{path.parent} has no room for {num_bytes} bytes shared by {size} ranks; make it larger "
                "(a container's default is 64 MiB) or use gloo"
            ) from error
        mapping = mmap.mmap(descriptor, num_bytes)
        mapping[: len(expected)] = expected
        _put_in_place(fresh, path, name)
        try:
            _await_ranks(mapping, size, name, deadline)
        finally:
            path.unlink(missing_ok=True)
        Counter(mapping, _LINE).publish(1)
        return mapping
    finally:
        fresh.unlink(missing_ok=True)
        os.close(descriptor)


def _put_in_place(fresh: Path, path: Path, name: str) -> None:
    """Give the file its name unless a living rank 0 holds that name."""
    with suppress(FileNotFoundError):
        if not _is_abandoned(path):
            raise CollectiveError(f"another process is opening a segment for {name!r}: namespaces must be unique")
    os.replace(fresh, path)


def _await_ranks(mapping: mmap.mmap, size: int, name: str, deadline: float) -> None:
    for rank in range(1, size):
        if not Counter(mapping, _LINE * (1 + rank)).wait_for(1, deadline - time.monotonic()):
            raise CollectiveTimeout(f"rank {rank} of {size} did not attach to the shared memory of {name!r} in time")


def _attach(path: Path, name: str, num_bytes: int, expected: bytes, rank: int, deadline: float) -> mmap.mmap:
    """Map the file that rank 0 made; a stale one is never released, so look again whenever the name changes hands."""
    while time.monotonic() < deadline:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            time.sleep(0.002)
            continue
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                raise CollectiveError(f"the shared memory of {name!r} belongs to user {status.st_uid}, not to this one")
            if status.st_size == num_bytes:
                mapping = mmap.mmap(descriptor, num_bytes)
                if mapping[: len(expected)] == expected and _released(mapping, path, status.st_ino, rank, deadline):
                    return mapping
        finally:
            os.close(descriptor)
        time.sleep(0.002)
    raise CollectiveTimeout(f"rank 0 did not open the shared memory of {name!r} (seen by rank {rank}) in time")


def _released(mapping: mmap.mmap, path: Path, inode: int, rank: int, deadline: float) -> bool:
    """Say that this rank is here and wait for all; False: the file has been replaced or time is up."""
    Counter(mapping, _LINE * (1 + rank)).publish(1)
    release = Counter(mapping, _LINE)
    while time.monotonic() < deadline:
        if release.wait_for(1, 0.02):
            return True
        try:
            if path.stat().st_ino != inode:
                return False
        except FileNotFoundError:
            # Unlinked: rank 0 releases next, or gave up.
            return release.wait_for(1, 1.0)
    return False


def _sweep() -> None:
    """Remove what killed processes of this user left before their ranks had all attached."""
    for path in _directory().glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = path.lstat()
            old = time.time() - status.st_mtime > 60  # younger ones may not be locked yet
            if status.st_uid == os.geteuid() and old and _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    """Whether the process that made the file is gone: its exclusive lock is. Askers share theirs among themselves."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
