"""`argosy keys`: API keys, made, listed, rotated and revoked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
from google.protobuf.duration_pb2 import Duration
from rich import box
from rich.table import Table

from argosy.v1 import admin_pb2 as api
from cluster.cli.management import door_options, management, shown
from cluster.cli.terminal import console

DAY = 86400


@click.group("keys")
def command() -> None:
    """Make, show, rotate and revoke API keys.

    A key is shown once, on standard output, when it is made; only a keyed hash of it is stored. Clients send it as
    `authorization: Bearer KEY`; argosy's own commands take it from $ARGOSY_API_KEY.

    \b
    Examples:
      argosy keys create acme --label website -f argosy.yaml
      argosy keys create ops --scope admin --scope usage --days 90 -f argosy.yaml
      argosy keys list acme
      argosy keys rotate 0123456789abcdef --overlap-days 7
      argosy keys revoke 0123456789abcdef
    """


@command.command("create")
@click.argument("tenant")
@click.option("--label", default="", help="What it is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["generate", "usage", "admin"]),
    help="What it allows. May be repeated. Default: generate and usage.",
)
@click.option("--days", type=click.IntRange(min=1), help="How long it works. Default: until revoked.")
@door_options
def create(
    tenant: str, label: str, scopes: tuple[str, ...], days: int | None, file: Path | None, address: str | None
) -> None:
    """Make a key for TENANT and print it, this once."""
    lifetime = Duration(seconds=days * DAY) if days else None
    request = api.CreateKeyRequest(tenant=tenant, label=label, scopes=scopes, lifetime=lifetime)

    async def run() -> None:
        async with management(file, address) as manage:
            response: api.CreateKeyResponse = await manage("CreateKey", request)
            _show_secret(response.key, response.secret)

    asyncio.run(run())


@command.command("rotate")
@click.argument("key_id")
@click.option("--overlap-days", default=1, show_default=True, type=click.IntRange(min=0), help="The old key's rest.")
@door_options
def rotate(key_id: str, overlap_days: int, file: Path | None, address: str | None) -> None:
    """Make a key like KEY_ID, which goes on working for a while, and print the new one, this once."""
    request = api.RotateKeyRequest(key_id=key_id, overlap=Duration(seconds=overlap_days * DAY))

    async def run() -> None:
        async with management(file, address) as manage:
            response: api.RotateKeyResponse = await manage("RotateKey", request)
            _show_secret(response.key, response.secret)

    asyncio.run(run())


@command.command("revoke")
@click.argument("key_id")
@door_options
def revoke(key_id: str, file: Path | None, address: str | None) -> None:
    """End KEY_ID; every router notices within seconds."""

    async def run() -> None:
        async with management(file, address) as manage:
            await manage("RevokeKey", api.RevokeKeyRequest(key_id=key_id))
            console().print(f"Revoked {key_id}")

    asyncio.run(run())


@command.command("list")
@click.argument("tenant", default="")
@door_options
def list_keys(tenant: str, file: Path | None, address: str | None) -> None:
    """Show the keys of TENANT, or all."""

    async def run() -> None:
        async with management(file, address) as manage:
            response: api.ListKeysResponse = await manage("ListKeys", api.ListKeysRequest(tenant=tenant))
            console().print(_table(list(response.keys)) if response.keys else "There is no key.")

    asyncio.run(run())


def _show_secret(key: api.Key, secret: str) -> None:
    """The key alone on stdout, for pipes; the rest on stderr."""
    click.echo(secret)
    click.echo(f"key {key.key_id} of {key.tenant}: {', '.join(key.scopes)}. It is shown this once.", err=True)


def _table(keys: list[api.Key]) -> Table:
    table = Table("key", "tenant", "label", "scopes", "made", "ends", box=box.SIMPLE_HEAD)
    for key in keys:
        ends = shown(key.expires_at) if key.HasField("expires_at") else "never"
        if key.HasField("revoked_at"):
            ends = f"revoked {shown(key.revoked_at)}"
        table.add_row(key.key_id, key.tenant, key.label, ", ".join(key.scopes), shown(key.created_at), ends)
    return table
