"""Memory that ranks of one host share: segments that cannot leak, counters to wait on, byte rings. Knows no tensors.

A rank publishes by writing data and then a counter; a reader that sees the counter sees the data. That order is kept by
total store order (Intel SDM vol. 3A, 9.2.2), so only x86-64 is served: `unsupported_reason` says why elsewhere.
Waiting spins, then yields the core, then sleeps in futex(2): quick beside an idle core, free beside a busy one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import platform
import struct
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.parallel.progress import CollectiveError, CollectiveTimeout

Bytes = npt.NDArray[np.uint8]

LEFT = 1 << 62
"""Value of a counter whose owner has gone: it ends every wait at once."""

# A segment starts with one cache line each for: what it is, rank 0's release, the other ranks' arrivals, the counters.
_LINE = 64
_PREFIX = "argosy-"
_MAGIC = 0x3179736F677261  # "argosy1"
_SPINS = 100
_YIELDS = 200
_SYS_FUTEX, _FUTEX_WAIT, _FUTEX_WAKE = 202, 0, 1  # x86-64; not FUTEX_PRIVATE: waiters are other processes
_NAP_SECONDS = 0.1  # longest sleep between two looks at the deadline


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
_syscall.restype = ctypes.c_long


def unsupported_reason() -> str | None:
    """Why shared memory cannot be used on this machine; None: it can."""
    if sys.platform != "linux":
        return f"shared-memory collectives wait with futex(2), which {sys.platform} does not have"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"shared-memory collectives rely on x86-64's store order, this is {platform.machine()}"
    return None


class Counter:
    """A rising 64-bit number in shared memory, written by one rank and awaited by others."""

    def __init__(self, buffer: mmap.mmap, offset: int) -> None:
        self._word = memoryview(buffer)[offset : offset + 8].cast("q")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(buffer, offset))
        self._nap = _Timespec(0, int(_NAP_SECONDS * 1e9))
        self._nap_address = ctypes.addressof(self._nap)

    @property
    def value(self) -> int:
        return self._word[0]

    def publish(self, value: int) -> None:
        """Everything this process wrote before is seen by whoever sees `value`."""
        self._word[0] = value
        _syscall(_SYS_FUTEX, self._address, _FUTEX_WAKE, 0x7FFFFFFF, None)

    def wait_for(self, value: int, timeout_seconds: float) -> bool:
        """Wait until the counter is at least `value`; False: it was not in time."""
        word = self._word
        for _ in range(_SPINS):
            if word[0] >= value:
                return True
        for _ in range(_YIELDS):
            if word[0] >= value:
                return True
            os.sched_yield()
        deadline = time.monotonic() + timeout_seconds
        while (seen := word[0]) < value:
            if time.monotonic() >= deadline:
                return False
            # The kernel compares the low 32 bits under its lock, so a publish in between is not slept through.
            _syscall(_SYS_FUTEX, self._address, _FUTEX_WAIT, seen & 0xFFFFFFFF, self._nap_address)
        return True


class Segment:
    """Memory mapped by `size` ranks of one host: `num_counters` counters and `data_bytes` bytes, all zero at first.

    Rank 0 makes the file, the others map it, and it is unlinked as soon as all have: whatever dies later leaks nothing.
    A file that a killed rank 0 left is recognised by its free lock and replaced.
    """

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


class ByteRing:
    """A queue of messages from one process to another. Each has a checked frame: skipping one is noticed."""

    _FRAME = struct.Struct("<qq")  # sequence number, payload bytes

    def __init__(self, written: Counter, taken: Counter, data: Bytes, name: str, timeout_seconds: float) -> None:
        self._written, self._taken, self._data = written, taken, data
        self._name, self._timeout_seconds = name, timeout_seconds
        self._position = 0
        self._sequence = 0

    def put(self, payload: Bytes) -> None:
        """Copy a message in; waits only while the ring is full."""
        self._transfer(np.frombuffer(self._FRAME.pack(self._sequence, payload.size), np.uint8), into_ring=True)
        self._transfer(payload, into_ring=True)
        self._sequence += 1

    def take(self, payload: Bytes) -> None:
        """Copy the next message out; it must have exactly `payload.size` bytes."""
        frame = np.empty(self._FRAME.size, np.uint8)
        self._transfer(frame, into_ring=False)
        sequence, num_bytes = self._FRAME.unpack(frame.tobytes())
        if (sequence, num_bytes) != (self._sequence, payload.size):
            raise CollectiveError(
                f"{self._name}: expected message {self._sequence} of {payload.size} bytes, "
                f"found message {sequence} of {num_bytes} bytes: the ranks disagree about the step"
            )
        self._transfer(payload, into_ring=False)
        self._sequence += 1

    def leave_as_writer(self) -> None:
        """End the reader's wait: nothing more will come. What is in the ring is lost."""
        self._written.publish(LEFT)

    def leave_as_reader(self) -> None:
        """End the writer's wait: nothing more will be taken."""
        self._taken.publish(LEFT)

    def _transfer(self, payload: Bytes, *, into_ring: bool) -> None:
        ring = self._data
        done = 0
        while done < payload.size:
            offset = self._position % ring.size
            count = min(payload.size - done, ring.size - offset, self._available(into_ring=into_ring))
            piece = payload[done : done + count]
            if into_ring:
                ring[offset : offset + count] = piece
            else:
                piece[:] = ring[offset : offset + count]
            self._position += count
            done += count
            (self._written if into_ring else self._taken).publish(self._position)

    def _available(self, *, into_ring: bool) -> int:
        """Bytes that can be moved now; waits for at least one."""
        awaited, base = (
            (self._taken, self._position - self._data.size) if into_ring else (self._written, self._position)
        )
        action = "make room in" if into_ring else "put message"
        if not awaited.wait_for(base + 1, self._timeout_seconds):
            raise CollectiveTimeout(
                f"{self._name}: the peer did not {action} {self._sequence} within {self._timeout_seconds:g} s"
            )
        reached = awaited.value
        if reached >= LEFT:
            raise CollectiveError(f"{self._name}: the peer left before message {self._sequence}")
        return reached - base


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
