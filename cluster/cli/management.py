"""The two doors to tenants, keys and usage: a router, or the database itself on its own machine. Shows nothing.

Both take `AdminService`'s and `UsageService`'s messages, so that a command is written once. The second door is for
whoever may read the file anyway, and makes the first key.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from argosy.v1 import admin_pb2_grpc, usage_pb2, usage_pb2_grpc
from cluster.cli.client import DEFAULT_ROUTER, explain, open_channel
from cluster.cli.credentials import credentials
from cluster.clock import SystemClock
from cluster.config import load_config
from cluster.errors import ConfigurationError, Reason, ServiceError
from cluster.identity.administration import Administration
from cluster.identity.keys import SECRET_FILE, read_secret
from cluster.ledger.database import Database, StoreUnavailableError
from cluster.ledger.opening import connector
from cluster.ledger.reports import record, summarize
from cluster.ledger.schema import create_tables

Manage = Callable[[str, Message], Awaitable[Any]]
"""(method, request) to response."""

END_OF_TIME = 1e12
_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")


def door_options(command: _Command) -> _Command:
    """Where to manage: `--address` or `-f`."""
    file = click.option(
        "-f",
        "--file",
        type=click.Path(path_type=Path),
        help="The region's YAML file: open its ledger here, without a router.",
    )
    address = click.option(
        "--address",
        help=f"host:port of a router; needs $ARGOSY_API_KEY. Default: {DEFAULT_ROUTER}, unless -f is given.",
    )
    return file(address(command))


@asynccontextmanager
async def management(file: Path | None, address: str | None) -> AsyncIterator[Manage]:
    """
    Raises:
        click.ClickException: it was refused, in one line.
        ConfigurationError: the file or the store cannot be used.
    """
    if file is not None and address is not None:
        raise click.UsageError("give --address or -f, not both")
    if file is None:
        where = address or DEFAULT_ROUTER
        async with open_channel(where) as channel:
            yield _through_router(channel, where)
        return
    config = load_config(file)
    if config.ledger.store == "memory":
        raise ConfigurationError(f"{file}: ledger.store is memory, which holds no tenants")
    try:
        database = connector(config)()
        create_tables(database)
    except StoreUnavailableError as error:
        raise ConfigurationError(f"ledger: the store cannot be opened: {error}") from None
    try:
        yield _through_database(_OwnConnection(database), read_secret(config.ledger_path.with_name(SECRET_FILE)))
    finally:
        database.close()


def _through_router(channel: grpc.aio.Channel, where: str) -> Manage:
    stubs: tuple[Any, ...] = (
        admin_pb2_grpc.AdminServiceStub(channel),  # type: ignore[no-untyped-call]
        usage_pb2_grpc.UsageServiceStub(channel),  # type: ignore[no-untyped-call]
    )

    async def call(method: str, request: Message) -> Any:
        stub = next(stub for stub in stubs if hasattr(stub, method))
        try:
            return await getattr(stub, method)(request, timeout=30, metadata=credentials())
        except grpc.aio.AioRpcError as error:
            raise click.ClickException(explain(error, where)) from None

    return call


class _OwnConnection:
    """Changes of one process that nobody else waits for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(self, function: Callable[[Database], _Result]) -> _Result:
        try:
            self._database.begin()
            result = function(self._database)
            self._database.commit()
        except StoreUnavailableError as error:
            raise ServiceError(Reason.LEDGER_UNAVAILABLE, str(error)) from None
        except ServiceError:
            self._database.rollback()
            raise
        return result


def _through_database(store: _OwnConnection, secret: bytes) -> Manage:
    administration = Administration(store, secret, SystemClock())

    async def call(method: str, request: Any) -> Any:
        try:
            if method == "SummarizeUsage":
                return await _summarize(store, request)
            if method == "GetUsageRecord":
                return await _record(store, request)
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
            return await getattr(administration, name)(request, f"operator:{getpass.getuser()}")
        except ServiceError as error:
            raise click.ClickException(error.public_message) from None

    return call


async def _summarize(
    store: _OwnConnection, request: usage_pb2.SummarizeUsageRequest
) -> usage_pb2.SummarizeUsageResponse:
    since = request.since.ToNanoseconds() / 1e9 if request.HasField("since") else 0.0
    until = request.until.ToNanoseconds() / 1e9 if request.HasField("until") else END_OF_TIME
    tenant = request.tenant or None
    summaries = await store.change(lambda database: summarize(database, tenant, since, until))
    return usage_pb2.SummarizeUsageResponse(summaries=summaries)


async def _record(store: _OwnConnection, request: usage_pb2.GetUsageRecordRequest) -> usage_pb2.GetUsageRecordResponse:
    found = await store.change(lambda database: record(database, request.request_id))
    if found is None:
        raise ServiceError(Reason.UNKNOWN_RESOURCE, f"request {request.request_id!r}")
    return usage_pb2.GetUsageRecordResponse(record=found)


def instant(value: datetime | None) -> Timestamp | None:
    """A time given on the command line; without a zone it is UTC."""
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value if value.tzinfo else value.replace(tzinfo=UTC))
    return message


def shown(moment: Timestamp) -> str:
    """A time for a table, to the minute, UTC."""
    return moment.ToDatetime().strftime("%Y-%m-%d %H:%M")
