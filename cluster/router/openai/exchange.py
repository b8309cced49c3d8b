"""One HTTP request's exchange with the service: its calls' events in, server-sent events or one JSON object out.

Knows HTTP responses and the service's events; what is told of them is the answer's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

from aiohttp import web

from argosy.v1 import inference_pb2 as api
from cluster.errors import ServiceError
from cluster.router.openai import problems

Json = dict[str, Any]


class Answering(Protocol):
    """Tells an answer, event by event and as a whole."""

    def end(self) -> Iterator[Json]: ...
    def whole(self) -> Json: ...


class Call:
    """What the service is given in place of a gRPC context."""

    def __init__(self, request: web.Request, on_event: Callable[[api.GenerateResponse], Awaitable[None]]) -> None:
        self._metadata = tuple((name.lower(), value) for name, value in request.headers.items())
        self.write = on_event
        self.headers: dict[str, str] = {}
        """What the tenant's limits leave."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.headers = problems.limit_headers(dict(metadata))


class Events:
    """Takes the events of one call, and hands what they amount to to the stream."""

    call: Call

    def __init__(
        self,
        stream: Exchange,
        start: Callable[[api.Started], Iterator[Json]],
        delta: Callable[[api.Delta], Iterator[Json]],
        finish: Callable[[api.Finished], Iterator[Json]],
    ) -> None:
        self._stream = stream
        self._start, self._delta, self._finish = start, delta, finish

    async def take(self, event: api.GenerateResponse) -> None:
        match event.WhichOneof("event"):
            case "started":
                chunks = self._start(event.started)
                await self._stream.begin(event.started.request_id, self.call.headers)
            case "delta":
                chunks = self._delta(event.delta)
            case _:
                chunks = self._finish(event.finished)
        await self._stream.tell(chunks)


class Exchange:
    """The answer to one HTTP request: server-sent events as they come, or one JSON object at the end."""

    def __init__(
        self,
        request: web.Request,
        streams: bool | None,
        answer: Answering,
        *,
        done: bytes = b"",
        names_events: bool = False,
    ) -> None:
        """
        Args:
            done: what is written after the last event.
            names_events: write each event's type as its SSE name too.
        """
        self._request = request
        self._streams = bool(streams)
        self._answer = answer
        self._done = done
        self._names_events = names_events
        self._headers: dict[str, str] = {}
        self._response: web.StreamResponse | None = None

    def events(self, start: Any, delta: Any, finish: Any) -> Events:
        return Events(self, start, delta, finish)

    async def begin(self, request_id: str, headers: dict[str, str]) -> None:
        """The request was accepted."""
        self._headers = {"x-request-id": request_id, **headers, **self._headers}
        if self._streams and self._response is None:
            # Proxies that buffer would turn a stream into one late answer.
            kind = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            self._response = web.StreamResponse(headers={**kind, **self._headers})
            await self._response.prepare(self._request)

    async def tell(self, chunks: Iterator[Json]) -> None:
        """Write what there is to write; the chunks are taken in any case, since the whole is made of them."""
        pieces = [self._encoded(chunk) for chunk in chunks]
        if self._response is not None and pieces:
            await self._write(b"".join(pieces))

    async def run(self, calls: Sequence[Awaitable[None]]) -> web.StreamResponse:
        """Make the calls and answer.

        Raises:
            ServiceError: a call was refused or failed before anything was written.
        """
        try:
            await _all(calls)
        except ServiceError as error:
            if self._response is None:
                raise
            # The status is long gone; what is left is to say it in the stream.
            await self._write(self._encoded(self._error(error)))
            return self._response
        if self._response is None:
            return web.json_response(self._answer.whole(), headers=self._headers)
        await self.tell(self._answer.end())
        await self._write(self._done)
        return self._response

    def _error(self, error: ServiceError) -> Json:
        told = problems.error_object(error)
        return {"type": "error", **told["error"], "sequence_number": -1} if self._names_events else told

    def _encoded(self, chunk: Json) -> bytes:
        if not self._streams:
            return b""
        name = f"event: {chunk['type']}\n" if self._names_events else ""
        return f"{name}data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

    async def _write(self, data: bytes) -> None:
        assert self._response is not None
        try:
            await self._response.write(data)
        except ConnectionResetError:
            # As when gRPC's client is gone: whoever awaits the answer no more has cancelled it.
            raise asyncio.CancelledError from None


async def _all(calls: Sequence[Awaitable[None]]) -> None:
    """Run calls side by side; the first error ends the others."""
    if len(calls) == 1:
        await calls[0]
        return
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
