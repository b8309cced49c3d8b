"""gRPC between our own processes: mutual TLS, and each method for the roles that may call it. Knows roles; no services.

Where no certificates are configured the same functions speak plain text, on the loopback interface only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeAlias

import grpc
import grpc.aio

from cluster.errors import Reason, ServiceError
from cluster.peers import CALLERS, Identity, Role, roles_in
from cluster.rpc.tls import TlsFiles, channel_credentials, server_credentials
from cluster.rpc.transport import channel, listen, server

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_SAN_KEY = "x509_subject_alternative_name"
"""gRPC's name for the certificate's names in a call's authentication context."""


def private_server(identity: Identity, *, share_port: bool = False) -> grpc.aio.Server:
    """A server whose methods only the roles in `cluster.peers.CALLERS` can call; `private_listen` binds it.

    Args:
        share_port: several processes may listen on one port.
    """
    return server(interceptors=[_RoleGuard(is_encrypted=identity.files is not None)], share_port=share_port)


def private_listen(target: grpc.aio.Server, address: str, key: str, identity: Identity) -> str:
    """Bind a private server before it starts.

    Args:
        address: host:port; port 0 takes a free one.
        key: the configuration key that holds the address, for errors.

    Returns:
        host:port with the port in force.

    Raises:
        ConfigurationError: it cannot be bound, the certificates cannot be used, or it would speak plain text where
            others can listen.
    """
    identity.check_exposure(address, key)
    files = identity.files
    credentials = server_credentials(TlsFiles(files.certificate, files.key, files.authority)) if files else None
    return listen(target, address, key, credentials)


def private_channel(address: str, identity: Identity, to: Role) -> grpc.aio.Channel:
    """A channel to one of our own processes, which must prove that it has the role `to`.

    The certificates are read now: whoever connects again opens a new channel, and so takes up renewed ones.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    files = identity.files
    if files is None:
        return channel(address)
    credentials = channel_credentials(files.authority, TlsFiles(files.certificate, files.key))
    return channel(address, credentials=credentials, server_name=to.dns_name)


class _RoleGuard(grpc.aio.ServerInterceptor):
    """Refuses callers whose certificate does not give a role that may call the method."""

    def __init__(self, *, is_encrypted: bool) -> None:
        self._is_encrypted = is_encrypted

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        callers = CALLERS.get(handler_call_details.method, frozenset())
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            if (behaviour := getattr(handler, kind)) is not None:
                handler = handler._replace(**{kind: self._guarded(behaviour, callers)})
        guarded: Handler = handler
        return guarded

    def _guarded(self, behaviour: Callable[[Any, Any], Any], callers: Collection[Role]) -> Callable[[Any, Any], Any]:
        def checked(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            if not callers:
                raise ServiceError(Reason.FORBIDDEN, "this method has no policy")
            if self._is_encrypted and roles_in(_names(context)).isdisjoint(callers):
                raise ServiceError(Reason.FORBIDDEN, "another role is needed")
            return behaviour(request, context)

        return checked


def _names(context: grpc.aio.ServicerContext[Any, Any]) -> list[str]:
    return [name.decode(errors="replace") for name in context.auth_context().get(_SAN_KEY, ())]
