"""Lets another protocol's call use the service: its context stands behind one that hands events over.

Knows no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from argosy.v1 import inference_pb2 as api
from cluster.errors import Reason, ServiceError
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


class Relay:
    """One request on its way through the service."""

    def __init__(self, service: InferenceService, request: api.GenerateRequest, call: Context) -> None:
        # One event may wait: a reader that stops holds up the service as a stopped client does.
        self._events: asyncio.Queue[api.GenerateResponse | None] = asyncio.Queue(maxsize=1)
        self._serving = asyncio.create_task(self._serve(service, request, call))
        self._is_aborted = False

    def abort(self) -> None:
        """End the request; its reader is told CLIENT_CANCELLED."""
        self._is_aborted = True
        self._serving.cancel()

    async def events(self) -> AsyncIterator[api.GenerateResponse]:
        """The events of the answer. Leaving the loop early cancels the request.

        Raises:
            ServiceError: it was refused, aborted, or failed.
        """
        try:
            while (event := await self._events.get()) is not None:
                yield event
            await asyncio.wait([self._serving])
            if self._is_aborted:
                raise ServiceError(Reason.CLIENT_CANCELLED)
            self._serving.result()
        finally:
            self._serving.cancel()
            # Room for the last word, which nobody reads any more.
            while not self._events.empty():
                self._events.get_nowait()
            await asyncio.gather(self._serving, return_exceptions=True)

    async def _serve(self, service: InferenceService, request: api.GenerateRequest, call: Context) -> None:
        try:
            await service.Generate(request, cast(Any, _Context(call, self._events)))
        finally:
            with suppress(asyncio.CancelledError):
                await self._events.put(None)
