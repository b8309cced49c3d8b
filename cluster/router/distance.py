"""Makes a near replica a far one: holds every message for half a round trip. For several regions on one machine.

Knows calls and time; no protocol. Order is kept, nothing is lost, and messages overtake no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc.aio

from cluster.router.dial import Dial, OpenCall


def at_distance(dial: Dial, round_trip: float) -> Dial:
    """The same transport over a line of `round_trip` seconds."""

    @asynccontextmanager
    async def far(address: str) -> AsyncIterator[OpenCall]:
        calls: list[_FarCall] = []
        async with dial(address) as open_call:

            async def open_far() -> _FarCall:
                # Setting up a connection takes a round trip too.
                await asyncio.sleep(round_trip)
                call = _FarCall(await open_call(), round_trip / 2)
                calls.append(call)
                return call

            try:
                yield open_far
            finally:
                for call in calls:
                    await call.close()

    def dial_far(address: str) -> AbstractAsyncContextManager[OpenCall]:
        return far(address)

    return dial_far


class _FarCall:
    """A stream-stream call whose messages take `delay` seconds each way."""

    def __init__(self, call: Any, delay: float) -> None:
        self._call = call
        self._delay = delay
        self._inbound: asyncio.Queue[tuple[float, Any]] = asyncio.Queue()
        self._outbound: asyncio.Queue[tuple[float, Any]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]

    def __getattr__(self, name: str) -> Any:
        """Whatever is no message (status, metadata) is the call's own."""
        return getattr(self._call, name)

    async def write(self, message: Any) -> None:
        self._outbound.put_nowait((asyncio.get_running_loop().time() + self._delay, message))

    async def read(self) -> Any:
        at, message = await self._inbound.get()
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
        if isinstance(message, Exception):
            raise message
        return message

    async def close(self) -> None:
        """Nothing more travels."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        message: Any = None
        while not (isinstance(message, Exception) or message is grpc.aio.EOF):
            try:
                message = await self._call.read()
            except Exception as error:
                message = error
            self._inbound.put_nowait((loop.time() + self._delay, message))

    async def _send(self) -> None:
        while True:
            at, message = await self._outbound.get()
            await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
            await self._call.write(message)
