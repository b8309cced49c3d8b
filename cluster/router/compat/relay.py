"""Lets another protocol's call use the service: its context stands behind one that hands events over.

Knows no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from argosy.v1 import inference_pb2 as api
from cluster.router.service import Context, InferenceService


class _Context:
    """What the service needs of a call."""

    def __init__(self, call: Context, events: asyncio.Queue[api.GenerateResponse | None]) -> None:
        self._call = call
        self._events = events
        self.invocation_metadata = call.invocation_metadata
        self.set_trailing_metadata = call.set_trailing_metadata

    async def write(self, event: api.GenerateResponse) -> None:
        await self._events.put(event)


async def events_of(
    service: InferenceService, request: api.GenerateRequest, call: Context
) -> AsyncIterator[api.GenerateResponse]:
    """The events of an answer. Leaving the loop early cancels the request.

    Raises:
        ServiceError: it was refused, or failed.
    """
    # One event may wait: a reader that stops holds up the service as a stopped client does.
    events: asyncio.Queue[api.GenerateResponse | None] = asyncio.Queue(maxsize=1)

    async def serve() -> None:
        try:
            await service.Generate(request, cast(Any, _Context(call, events)))
        finally:
            with suppress(asyncio.CancelledError):
                await events.put(None)

    serving = asyncio.create_task(serve())
    try:
        while (event := await events.get()) is not None:
            yield event
        await serving
    finally:
        if not serving.done():
            serving.cancel()
            # Room for the last word, which nobody reads any more.
            while not events.empty():
                events.get_nowait()
        await asyncio.gather(serving, return_exceptions=True)
