"""Stands before every method: who is it, and may they? Knows the policy table; no services.

It decides on the metadata alone: a refused call's message is never parsed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import empty_pb2

from cluster import rpc
from cluster.errors import Reason, ServiceError
from cluster.identity.authenticator import Authenticator
from cluster.identity.policy import METHODS, PUBLIC
from cluster.identity.principal import Scope, set_caller

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context = grpc.aio.ServicerContext[Any, Any]


class IdentityInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through with its caller set, or refuses it."""

    def __init__(self, authenticator: Authenticator, methods: Mapping[str, Scope | None] = METHODS) -> None:
        self._authenticator = authenticator
        self._methods = methods

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        try:
            await self._admit(handler_call_details)
        except ServiceError as error:
            return _refusal(handler, error)
        except Exception:
            # Whatever went wrong, nobody comes in by it.
            log.exception("a caller could not be checked")
            return _refusal(handler, ServiceError(Reason.INTERNAL))
        return handler

    async def _admit(self, details: grpc.HandlerCallDetails) -> None:
        if details.method not in self._methods:
            raise ServiceError(Reason.FORBIDDEN, "this method has no policy")
        scope = self._methods[details.method]
        if scope is PUBLIC:
            return
        # The call's own task runs this and then its handler, so the variable is the call's.
        caller = await self._authenticator.authenticate(details.invocation_metadata or ())
        caller.check_scope(scope)
        set_caller(caller)


def _refusal(handler: Any, error: ServiceError) -> Handler:
    """A handler of the same kind that only says no."""

    async def unary(request: object, context: Context) -> None:
        await rpc.abort(context, error)

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[handler.request_streaming, handler.response_streaming]
    refusal: Handler = make(unary, request_deserializer=lambda _: empty_pb2.Empty())
    return refusal
