"""`argosy usage --reconcile`: reads the store, asks the controller, shows what does not agree. Decides nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import grpc.aio
from rich import box
from rich.table import Table

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.config import ArgosyConfig, load_config
from cluster.errors import ConfigurationError
from cluster.ledger.database import Database, StoreUnavailableError
from cluster.ledger.opening import connector
from cluster.ledger.reconcile import (
    Billed,
    ClientCount,
    EngineCount,
    Line,
    against_clients,
    against_engines,
    against_windows,
)
from cluster.ledger.records import Window
from cluster.peers import Role
from cluster.rpc import private_channel

HEARD_SECONDS = 1.5
"""Within it a controller has asked every engine again."""
_LONGEST_WINDOW_SECONDS = 32 * 86400.0


async def reconcile(file: Path, clients: Path | None) -> list[Line]:
    """Every comparison that can be made now.

    Raises:
        ConfigurationError: the store or the clients' file cannot be read.
        click.ClickException: no controller answers.
    """
    config = load_config(file)
    if config.ledger.store == "memory":
        raise ConfigurationError(f"{file}: ledger.store is memory, which keeps nothing to compare")
    since = await _ask(config)
    try:
        database = connector(config)()
        try:
            # One transaction: what is compared belongs to one moment.
            database.begin()
            lines = _windows(database, time.time())
            billed = _billed(database, since)
            of_clients = _clients(database, clients) if clients else []
            database.rollback()
        finally:
            database.close()
    except StoreUnavailableError as error:
        raise ConfigurationError(f"ledger: the store cannot be read: {error}") from None
    # What the ledger has by now, the controller has heard of by then.
    await asyncio.sleep(HEARD_SECONDS)
    return [*lines, *against_engines(billed, _engines(await _ask(config))), *of_clients]


def table(lines: Sequence[Line]) -> Table:
    """One row a comparison; drift in the last but one column."""
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("compared with")
    for name in ("ledger", "there", "drift"):
        shown.add_column(name, justify="right")
    shown.add_column("remarks")
    for line in lines:
        style = "red" if line.drift else ""
        shown.add_row(line.what, f"{line.ledger:,}", f"{line.other:,}", f"{line.drift:,}", line.note, style=style)
    return shown


async def _ask(config: ArgosyConfig) -> control_pb2.GetStatusResponse:
    address = config.controller.listen
    async with private_channel(address, config.peers.identity(Role.OPERATOR), to=Role.CONTROLLER) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            status: control_pb2.GetStatusResponse = await stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            raise click.ClickException(
                f"no controller answers at {address} ({error.code().name}); engines count only while the region is up"
            ) from None
    return status


def _windows(database: Database, now: float) -> list[Line]:
    buckets = {window.kind: window.bucket(now) for window in Window}
    held = {
        (tenant, kind, bucket): used
        for tenant, kind, bucket, used in database.query("SELECT tenant, kind, bucket, used FROM windows")
        if buckets.get(kind) == bucket
    }
    for tenant, kind, bucket, given in database.query("SELECT tenant, kind, bucket, granted FROM slices_given"):
        if (tenant, kind, bucket) in held:
            held[tenant, kind, bucket] -= given  # other regions account for it
    statement = """SELECT tenant, charges, reserved_tokens, prompt_tokens, completion_tokens, ending FROM requests
        WHERE opened_at >= ? OR ending IS NULL"""
    return against_windows(database.query(statement, (now - _LONGEST_WINDOW_SECONDS,)), held)


def _billed(database: Database, status: control_pb2.GetStatusResponse) -> dict[str, Billed]:
    """The ledger's sums of what the controller has counted too, by model."""
    statement = """SELECT model, SUM(completion_tokens), SUM(CASE WHEN ending = 'crashed' THEN 1 ELSE 0 END)
        FROM requests WHERE opened_at >= ? AND region = ? GROUP BY model"""
    since = status.started_at.ToNanoseconds() / 1e9
    return {
        model: Billed(int(completion), int(crashed))
        for model, completion, crashed in database.query(statement, (since, status.region))
    }


def _engines(status: control_pb2.GetStatusResponse) -> dict[str, EngineCount]:
    tokens: dict[str, int] = defaultdict(int)
    lost: dict[str, int] = defaultdict(int)
    for replica in status.replicas:
        tokens[replica.model] += replica.delivered_tokens
        lost[replica.model] += replica.lost_epochs
    return {model: EngineCount(tokens[model], lost[model]) for model in tokens}


def _clients(database: Database, path: Path) -> list[Line]:
    counts = read_clients(path)
    rows: dict[str, tuple[str, int, int]] = {}
    for count in counts:
        statement = "SELECT ending, prompt_tokens, completion_tokens FROM requests WHERE request_id = ?"
        for ending, prompt, completion in database.query(statement, (count.request_id,)):
            rows[count.request_id] = (ending or "", prompt, completion)
    return against_clients(rows, counts)


def read_clients(path: Path) -> list[ClientCount]:
    """What clients counted: JSON lines with `request_id`, `completion_tokens` and, if they like, `prompt_tokens`.

    Raises:
        ConfigurationError: the file cannot be read; the message names the line.
    """
    counts = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            counts.append(_client(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f'{path}: line {number}: expected {{"request_id": "...", "completion_tokens": N}}: {error!r}'
            ) from None
    return counts


def _client(entry: Mapping[str, Any]) -> ClientCount:
    prompt = entry.get("prompt_tokens")
    return ClientCount(
        str(entry["request_id"]), int(entry["completion_tokens"]), None if prompt is None else int(prompt)
    )
