"""The interceptor around every call: deadline, request size, and what becomes of exceptions. Knows no services."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from cluster.errors import Reason, ServiceError
from cluster.rpc.status import abort

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_deadline: ContextVar[float] = ContextVar("call_deadline", default=float("inf"))


def call_deadline() -> float:
    """When the call being handled must have ended, in `time.monotonic` seconds; infinite outside a call."""
    return _deadline.get()


def set_deadline(seconds: float) -> None:
    """The call being handled must have ended so many seconds from now."""
    _deadline.set(time.monotonic() + seconds)


def time_left() -> float:
    """Seconds left of the call being handled, never negative."""
    return max(0.0, _deadline.get() - time.monotonic())


class CallGuard(grpc.aio.ServerInterceptor):
    """Gives each call a deadline, refuses oversized requests, and lets no exception out but as a catalogued status."""

    def __init__(self, *, default_deadline: float | None, max_request_bytes: int) -> None:
        self._default_deadline = default_deadline
        self._max_request_bytes = max_request_bytes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        # Health watches of the gRPC project's own services last as long as their client likes.
        if handler is None or method.startswith("/grpc."):
            return handler
        return self._wrap(handler, method)

    def _wrap(self, handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        coding = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if not handler.request_streaming and handler.request_deserializer is not None:
            coding["request_deserializer"] = _parsed_or_unreadable(handler.request_deserializer)
        if handler.unary_unary:

            async def unary_unary(request: Any, context: Context) -> Any:
                async with self._guarded(method, context, request):
                    return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary_unary, **coding)
        if handler.unary_stream:

            async def unary_stream(request: Any, context: Context) -> None:
                async with self._guarded(method, context, request):
                    await _write_all(handler.unary_stream(request, context), context)

            return grpc.unary_stream_rpc_method_handler(unary_stream, **coding)
        if handler.stream_unary:

            async def stream_unary(requests: Any, context: Context) -> Any:
                async with self._guarded(method, context):
                    return await handler.stream_unary(requests, context)

            return grpc.stream_unary_rpc_method_handler(stream_unary, **coding)

        async def stream_stream(requests: Any, context: Context) -> None:
            async with self._guarded(method, context):
                await _write_all(handler.stream_stream(requests, context), context)

        return grpc.stream_stream_rpc_method_handler(stream_stream, **coding)

    @asynccontextmanager
    async def _guarded(
        self, method: str, context: Context, request: Message | _Unreadable | None = None
    ) -> AsyncIterator[None]:
        client_seconds: float | None = context.time_remaining()
        seconds = self._default_deadline if client_seconds is None else client_seconds
        if seconds is not None:
            set_deadline(seconds)
        # The transport itself enforces a client's deadline; ours is for calls that came without.
        scope = asyncio.timeout(seconds if client_seconds is None else None)
        try:
            self._check_request(request)
            async with scope:
                yield
        except ServiceError as error:
            await abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except cygrpc.ExecuteBatchError:
            # A write to a peer that is gone: grpcio has no public name for it, and reports it as the handler's fault.
            log.debug("%s: the client is gone", method)
            raise asyncio.CancelledError from None
        except Exception:
            if scope.expired():
                await abort(context, ServiceError(Reason.DEADLINE))
            log.exception("%s failed", method)
            await abort(context, ServiceError(Reason.INTERNAL))

    def _check_request(self, request: Message | _Unreadable | None) -> None:
        if isinstance(request, _Unreadable):
            raise ServiceError(Reason.INVALID_FIELD, "the bytes are not a message of this call's request type")
        if request is not None and (size := request.ByteSize()) > self._max_request_bytes:
            raise ServiceError(Reason.REQUEST_TOO_LARGE, f"{size} bytes; at most {self._max_request_bytes}")


class _Unreadable:
    """In place of a request whose bytes are no message: gRPC itself would show the client a Python exception."""


def _parsed_or_unreadable(parse: Callable[[bytes], Message]) -> Callable[[bytes], Message | _Unreadable]:
    def parse_or_mark(data: bytes) -> Message | _Unreadable:
        try:
            return parse(data)
        except DecodeError:
            return _Unreadable()

    return parse_or_mark


async def _write_all(responses: Any, context: Context) -> None:
    """Run a streaming handler of either kind: a generator of responses, or a coroutine that writes by itself."""
    if hasattr(responses, "__aiter__"):
        async for response in responses:
            await context.write(response)
    else:
        await responses
