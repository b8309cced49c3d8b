"""The client for threads: makes the calls that `Exchange` decides on. Knows channels and time; decides nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc

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


class Client:
    """`AsyncClient` without asyncio. Threads may share one."""

    def __init__(
        self,
        routers: str | Sequence[str],
        *,
        api_key: str | None = None,
        metadata: Metadata = (),
        credentials: grpc.ChannelCredentials | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        """Arguments as `AsyncClient`.

        Raises:
            ValueError: there is no address.
        """
        self._metadata = metadata_of(api_key) + metadata
        self._policy = policy or RetryPolicy()
        self._rng = random.Random()  # noqa: S311 (spreads load, hides nothing)
        tls = credentials or grpc.ssl_channel_credentials()
        self._channels = [_open(address, tls) for address in addresses_of(routers)]
        stub: Any = inference_pb2_grpc.InferenceServiceStub
        self._stubs: list[Any] = [stub(channel) for channel in self._channels]
        # Clients spread over the routers; whoever answered last is asked first.
        self._first = self._rng.randrange(len(self._stubs))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; answers that still stream are cancelled."""
        for channel in self._channels:
            channel.close()

    def chat(
        self, model: str, messages: Messages, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, **fields: Any
    ) -> Iterator[api.GenerateResponse]:
        """Go on with a conversation; `fields` as in `chat_request`.

        Raises:
            RequestError: as `generate`.
        """
        return self.generate(chat_request(model, messages, **fields), timeout_seconds=timeout_seconds)

    def generate(
        self, request: api.GenerateRequest, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    ) -> Iterator[api.GenerateResponse]:
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
                for event in call:
                    if exchange.take(event):
                        yield event
                return
            except grpc.RpcError as error:
                wait = exchange.failed(Failure.of(error), time.monotonic())
            finally:
                call.cancel()
            self._first = exchange.router
            time.sleep(wait)


def _open(address: str, tls: grpc.ChannelCredentials) -> grpc.Channel:
    if address.startswith(TLS_PREFIX):
        return grpc.secure_channel(address.removeprefix(TLS_PREFIX), tls, options=OPTIONS)
    return grpc.insecure_channel(address, options=OPTIONS)
