"""Time that costs nothing and a network that misbehaves: a loop that jumps to its next timer, pipes that hold and cut.

Knows how `ReplicaService` is called; no hosts, no requests."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from cluster.replica.service import ReplicaService


class _Jump(selectors.SelectSelector):
    """Never waits: moves the loop's time to its next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: nothing will ever happen again")
        self.loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds cost nothing."""

    def __init__(self) -> None:
        self.now = 0.0
        jump = _Jump()
        jump.loop = self
        super().__init__(jump)

    def time(self) -> float:
        return self.now


class LoopClock:
    """The loop's time as a `Clock`."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return 1.7e9 + self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Pipe:
    """One direction of a connection: in order, late, perhaps held back, perhaps cut."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._messages: deque[tuple[float, Any]] = deque()
        self._last = 0.0
        self._wake = asyncio.Event()
        self.held_until = 0.0
        self.is_cut = False

    def put(self, message: Any) -> None:
        now = asyncio.get_running_loop().time()
        delay = self._rng.expovariate(1 / 0.003)
        self._last = max(self._last, self.held_until, now + delay)
        self._messages.append((self._last, message))
        self._wake.set()

    def cut(self) -> None:
        self.is_cut = True
        self._wake.set()

    async def get(self) -> Any:
        """The next message; EOF once cut, as what was under way is lost."""
        loop = asyncio.get_running_loop()
        while True:
            if self.is_cut:
                return grpc.aio.EOF
            if self._messages:
                at = max(self._messages[0][0], self.held_until)
                if at <= loop.time():
                    return self._messages.popleft()[1]
                await asyncio.sleep(at - loop.time())
                continue
            self._wake.clear()
            await self._wake.wait()


class VirtualCall:
    """Both ends of one `Connect`."""

    def __init__(self, service: ReplicaService, rng: random.Random) -> None:
        self.up, self.down = Pipe(rng), Pipe(rng)
        self._serving = asyncio.create_task(self._serve(service))

    async def _serve(self, service: ReplicaService) -> None:
        try:
            await service.Connect(self._requests(), self)  # type: ignore[arg-type]
        except Exception:
            self.down.put(grpc.aio.EOF)
        finally:
            self.down.put(grpc.aio.EOF)

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.up.get()) is not grpc.aio.EOF:
            yield message

    async def write(self, message: Any) -> None:
        """By the router; the replica's end is `_Context`."""
        if self.up.is_cut:
            raise asyncio.InvalidStateError
        copy = type(message)()
        copy.CopyFrom(message)
        (self.down if hasattr(message, "report") else self.up).put(copy)

    async def read(self) -> Any:
        return await self.down.get()

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    def cut(self) -> None:
        self.up.cut()
        self.down.cut()

    def hold(self, until: float) -> None:
        self.up.held_until = self.down.held_until = until

    async def end(self) -> None:
        self.cut()
        await asyncio.gather(self._serving, return_exceptions=True)
