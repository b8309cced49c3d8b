"""The client for asyncio: makes the calls that `Exchange` decides on. Knows channels and time; decides nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from argosy.client.channels import (
    DEFAULT_TIMEOUT_SECONDS,
    OPTIONS,
    TLS_PREFIX,
    Metadata,
    addresses_of,
    metadata_of,
)
from argosy.client.exchange import Exchange, Failure, RetryPolicy
from argosy.client.requests import Messages, chat_request
from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc


class AsyncClient:
    """Streams answers from whichever of several routers can be reached, and goes on at another one when that dies."""

    def __init__(
        self,
        routers: str | Sequence[str],
        *,
        api_key: str | None = None,
        metadata: Metadata = (),
        credentials: grpc.ChannelCredentials | None = None,
        policy: RetryPolicy | None = None,
        open_channel: Callable[[str], grpc.aio.Channel] | None = None,
    ) -> None:
        """
        Args:
            routers: addresses, host:port or tls://host:port; a string may hold several with commas between them.
            api_key: an API key or access token.
            metadata: more of what each call carries.
            credentials: of TLS, for addresses that begin with tls://; by default the system's authorities are trusted.
            policy: how patiently calls are made again.
            open_channel: how an address is reached, in place of all that.

        Raises:
            ValueError: there is no address.
        """
        self._metadata = metadata_of(api_key) + metadata
        self._policy = policy or RetryPolicy()
        self._rng = random.Random()  # noqa: S311 (spreads load, hides nothing)
        tls = credentials or grpc.ssl_channel_credentials()
        opened = open_channel or (lambda address: _open(address, tls))
        self._channels = [opened(address) for address in addresses_of(routers)]
        stub: Any = inference_pb2_grpc.InferenceServiceStub
        self._stubs: list[Any] = [stub(channel) for channel in self._channels]
        # Clients spread over the routers; whoever answered last is asked first.
        self._first = self._rng.randrange(len(self._stubs))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; answers that still stream are cancelled."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def chat(
        self, model: str, messages: Messages, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, **fields: Any
    ) -> AsyncGenerator[api.GenerateResponse, None]:
        """Go on with a conversation; `fields` as in `chat_request`.

        Raises:
            RequestError: as `generate`.
        """
        return self.generate(chat_request(model, messages, **fields), timeout_seconds=timeout_seconds)

    async def generate(
        self, request: api.GenerateRequest, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> AsyncGenerator[api.GenerateResponse, None]:
        """The events of one answer: `started`, deltas without gaps, `finished`. Leaving the loop cancels it.

        Args:
            timeout_seconds: for the whole answer, resumptions included.

        Raises:
            RequestError: it could not be completed, and why.
        """
        deadline = time.monotonic() + timeout_seconds
        exchange = Exchange(request, len(self._stubs), deadline, self._policy, self._rng, self._first)
        while True:
            call = self._stubs[exchange.router].Generate(
                exchange.next_request(), timeout=max(0.0, deadline - time.monotonic()), metadata=self._metadata
            )
            try:
                async for event in call:
                    if exchange.take(event):
                        yield event
                return
            except grpc.aio.AioRpcError as error:
                wait = exchange.failed(Failure.of(error), time.monotonic())
            finally:
                call.cancel()
            self._first = exchange.router
            await asyncio.sleep(wait)


def _open(address: str, tls: grpc.ChannelCredentials) -> grpc.aio.Channel:
    if address.startswith(TLS_PREFIX):
        return grpc.aio.secure_channel(address.removeprefix(TLS_PREFIX), tls, options=OPTIONS)
    return grpc.aio.insecure_channel(address, options=OPTIONS)
