"""`argosy usage`: what was used, summed or request by request."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import datetime
from pathlib import Path

import click
from google.protobuf.json_format import MessageToDict
from rich import box
from rich.table import Table

from argosy.v1 import usage_pb2 as api
from cluster.cli.management import door_options, instant, management
from cluster.cli.reconcile import reconcile, table
from cluster.cli.terminal import console


@click.command("usage")
@click.option("--tenant", default="", help="Whose. Default: the key's own; all for the scope admin, and with -f.")
@click.option("--since", type=click.DateTime(), help="Only requests that began then or later, UTC.")
@click.option("--until", type=click.DateTime(), help="Only requests that began before, UTC.")
@click.option("--request", "request_id", help="One request's record instead of sums.")
@click.option("--reconcile", "is_check", is_flag=True, help="Hold the ledger against engines and clients. Needs -f.")
@click.option(
    "--clients",
    type=click.Path(path_type=Path),
    help="With --reconcile: JSON lines of request_id and completion_tokens, as clients counted.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@door_options
def command(
    tenant: str,
    since: datetime | None,
    until: datetime | None,
    request_id: str | None,
    is_check: bool,
    clients: Path | None,
    as_json: bool,
    file: Path | None,
    address: str | None,
) -> None:
    """Show what was used: tokens by tenant and model, or one request.

    With --reconcile: compare the ledger with its own windows, with what the engines of the running region gave out, and
    with what clients counted. Exit status 2 if something drifts.

    \b
    Examples:
      argosy usage -f argosy.yaml
      argosy usage --tenant acme --since 2026-11-01 --until 2026-12-01
      argosy usage --request req_0123456789abcdef0123456789abcdef --json
      argosy usage -f argosy.yaml --reconcile --clients counted.jsonl
    """
    if clients is not None and not is_check:
        raise click.UsageError("--clients goes with --reconcile")
    if is_check:
        if file is None:
            raise click.UsageError("--reconcile reads the store and asks the controller: give -f FILE")
        _reconcile(file, clients, as_json)
        return
    asyncio.run(_show(tenant, since, until, request_id, as_json, file, address))


def _reconcile(file: Path, clients: Path | None, as_json: bool) -> None:
    lines = asyncio.run(reconcile(file, clients))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
    else:
        console().print(table(lines))
    if any(line.drift for line in lines):
        click.get_current_context().exit(2)


async def _show(
    tenant: str,
    since: datetime | None,
    until: datetime | None,
    request_id: str | None,
    as_json: bool,
    file: Path | None,
    address: str | None,
) -> None:
    async with management(file, address) as manage:
        if request_id is not None:
            found: api.GetUsageRecordResponse = await manage(
                "GetUsageRecord", api.GetUsageRecordRequest(request_id=request_id)
            )
            click.echo(json.dumps(MessageToDict(found.record, preserving_proto_field_name=True), indent=2))
            return
        request = api.SummarizeUsageRequest(tenant=tenant, since=instant(since), until=instant(until))
        response: api.SummarizeUsageResponse = await manage("SummarizeUsage", request)
    if as_json:
        click.echo(json.dumps(MessageToDict(response, preserving_proto_field_name=True), indent=2))
    else:
        console().print(_table(list(response.summaries)) if response.summaries else "Nothing was used.")


def _table(summaries: list[api.UsageSummary]) -> Table:
    table = Table("tenant", "model", box=box.SIMPLE_HEAD)
    for name in ("requests", "prompt", "cached", "completion", "reasoning", "device s", "open now", "reserved now"):
        table.add_column(name, justify="right")
    for entry in summaries:
        numbers = (
            entry.requests,
            entry.prompt_tokens,
            entry.cached_prompt_tokens,
            entry.completion_tokens,
            entry.reasoning_tokens,
            round(entry.device_seconds, 1),
            entry.open_requests,
            entry.reserved_tokens,
        )
        table.add_row(entry.tenant, entry.model, *(f"{number:,}" for number in numbers))
    return table
