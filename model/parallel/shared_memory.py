"""Counters to wait on and byte rings in memory that ranks of one host share. Knows neither tensors nor files.

A rank publishes by writing data and then a counter; a reader that sees the counter sees the data. That order is kept by
total store order (Intel SDM vol. 3A, 9.2.2), so only x86-64 is served: `unsupported_reason` says why elsewhere.
Waiting spins, then yields the core, then sleeps in futex(2): quick beside an idle core, free beside a busy one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import sys
import time

import numpy as np
import numpy.typing as npt

from model.parallel.progress import CollectiveError, CollectiveTimeout

Bytes = npt.NDArray[np.uint8]

LEFT = (1 << 63) - 1
"""Value of a counter whose owner has gone: it ends every wait at once."""

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
