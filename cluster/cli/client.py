"""Asking a router: requests from options, streams of events, refusals in one line. Knows no files, no Ray."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
import grpc.aio

from argosy.client import AsyncClient, RequestError
from argosy.v1 import inference_pb2, models_pb2, models_pb2_grpc
from cluster.cli.credentials import credentials
from cluster.errors import Reason
from cluster.rpc import Link, channel, channel_credentials, to_service_error

DEFAULT_ROUTER = "127.0.0.1:50051"
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class AskOptions:
    """What `generate`, `chat` and `demo` let a user say about an answer; None leaves it to the server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    response_format: inference_pb2.ResponseFormat | None = None
    timeout: float = 600.0

    def request(self, model: str, source: str | inference_pb2.Chat) -> inference_pb2.GenerateRequest:
        """The request for a text prompt or a conversation."""
        request = inference_pb2.GenerateRequest(model=model)
        if isinstance(source, str):
            request.prompt = source
        else:
            request.chat.CopyFrom(source)
        if self.max_tokens is not None:
            request.max_tokens = self.max_tokens
        for name in ("temperature", "top_p", "top_k", "min_p", "seed"):
            if (value := getattr(self, name)) is not None:
                setattr(request.sampling, name, value)
        request.stop.strings.extend(self.stop)
        if self.response_format is not None:
            request.response_format.CopyFrom(self.response_format)
        return request


def ask_options(command: _Command) -> _Command:
    """The options of `AskOptions`, and where to call."""
    options = [
        click.option(
            "--address",
            default=DEFAULT_ROUTER,
            show_default=True,
            help="host:port of a router, or tls://host:port; several with commas between them share the work.",
        ),
        click.option("--model", help="Which model. Default: the one that is served, if there is only one."),
        click.option("--max-tokens", type=click.IntRange(min=0), help="Most tokens to generate."),
        click.option("--temperature", type=float, help="0 is greedy; higher is more varied."),
        click.option("--top-p", type=float, help="Keep the smallest set of tokens with this probability."),
        click.option("--top-k", type=click.IntRange(min=0), help="Keep only the k most probable tokens."),
        click.option("--min-p", type=float, help="Keep tokens this fraction as probable as the best."),
        click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Equal seeds give equal answers."),
        click.option("--stop", multiple=True, help="End the answer before this text. May be repeated."),
        click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds to wait for an answer."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to a router's public port: `host:port`, or `tls://host:port` for one that encrypts. Of several
    addresses the first.

    Raises:
        ConfigurationError: the file that $ARGOSY_TLS_CA names cannot be read.
    """
    address = address.partition(",")[0]
    where = address.removeprefix("tls://")
    if where == address:
        return channel(address, link=Link.PUBLIC)
    authority = os.environ.get("ARGOSY_TLS_CA")
    return channel(where, link=Link.PUBLIC, credentials=channel_credentials(Path(authority) if authority else None))


async def find_model(router: grpc.aio.Channel, name: str | None, address: str) -> models_pb2.Model:
    """The model by name, or the only one.

    Raises:
        click.ClickException: there is no such model, or none or several to choose from, or no router.
    """
    stub = models_pb2_grpc.ModelServiceStub(router)  # type: ignore[no-untyped-call]
    try:
        if name is not None:
            one: models_pb2.GetModelResponse = await stub.GetModel(
                models_pb2.GetModelRequest(model=name), timeout=10, metadata=credentials()
            )
            return one.model
        served: models_pb2.ListModelsResponse = await stub.ListModels(
            models_pb2.ListModelsRequest(), timeout=10, metadata=credentials()
        )
    except grpc.aio.AioRpcError as error:
        raise click.ClickException(explain(error, address)) from None
    if len(served.models) != 1:
        names = ", ".join(model.name for model in served.models) or "none"
        raise click.ClickException(f"say which model with --model; served: {names}")
    return served.models[0]


async def ask(
    request: inference_pb2.GenerateRequest, seconds: float, address: str
) -> AsyncIterator[inference_pb2.GenerateResponse]:
    """The events of one answer, from whichever router of `address` can give them. Leaving the loop early cancels it.

    Raises:
        click.ClickException: it could not be completed; the message says why.
    """
    async with AsyncClient(address, metadata=credentials(), open_channel=open_channel) as client:
        events = client.generate(request, timeout_seconds=seconds)
        try:
            async for response in events:
                yield response
        except RequestError as error:
            cause = error.__context__
            text = explain(cause, address) if isinstance(cause, grpc.aio.AioRpcError) else str(error)
            raise click.ClickException(text) from None
        finally:
            await events.aclose()


def explain(error: grpc.aio.AioRpcError, address: str) -> str:
    """A failed call in one line, with the advice that fits."""
    known = to_service_error(error)
    if known.reason is Reason.UNREACHABLE:
        return f"no router answers at {address}; start one with `argosy up -f FILE`, or give --address"
    advice = f"; try again in {known.retry_after:.0f} s" if known.retry_after else ""
    return f"{known.public_message}{advice}"


def user_message(text: str) -> inference_pb2.ChatMessage:
    return inference_pb2.ChatMessage(role=inference_pb2.ROLE_USER, content=text)


def system_message(text: str) -> inference_pb2.ChatMessage:
    return inference_pb2.ChatMessage(role=inference_pb2.ROLE_SYSTEM, content=text)


def assistant_message(text: str) -> inference_pb2.ChatMessage:
    return inference_pb2.ChatMessage(role=inference_pb2.ROLE_ASSISTANT, content=text)
