"""`argosy tenants`: who may use the service, and how much."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from argosy.v1 import admin_pb2 as api
from cluster.cli.management import door_options, management
from cluster.cli.terminal import console
from cluster.ledger.records import Window

PRIORITIES = ("interactive", "sheddable", "batch")


@click.group("tenants")
def command() -> None:
    """Show and set tenants: who may use the service, and how much.

    A tenant is reserved for, limited and billed as one. Its keys are made with `argosy keys create`.

    \b
    Examples:
      argosy tenants set acme --tokens-per-day 1000000 --concurrent-streams 8 -f argosy.yaml
      argosy tenants set acme --disable
      argosy tenants list
    """


@command.command("set")
@click.argument("name")
@click.option("--model", "models", multiple=True, help="A model it may use. May be repeated. Default: all.")
@click.option("--region", "regions", multiple=True, help="A region that serves it. May be repeated. Default: all.")
@click.option("--home", default="", help="The region that keeps its limits for all. Default: each region has its own.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="interactive", help="Its most urgent class.")
@click.option("--requests-per-minute", type=click.IntRange(min=0))
@click.option("--tokens-per-minute", type=click.IntRange(min=0))
@click.option("--tokens-per-day", type=click.IntRange(min=0))
@click.option("--tokens-per-month", type=click.IntRange(min=0))
@click.option("--concurrent-streams", type=click.IntRange(min=0))
@click.option("--soft", is_flag=True, help="Count what exceeds the limits, and let it pass.")
@click.option("--disable", is_flag=True, help="Refuse all its calls.")
@door_options
def set_tenant(
    name: str,
    models: tuple[str, ...],
    regions: tuple[str, ...],
    home: str,
    priority: str,
    soft: bool,
    disable: bool,
    file: Path | None,
    address: str | None,
    **limits: int | None,
) -> None:
    """Create the tenant NAME, or replace its whole policy: a limit not given is none."""
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    held = api.Limits(**given, soft=soft)
    most_urgent = f"PRIORITY_CLASS_{priority.upper()}"
    policy = api.TenantPolicy(models=models, regions=regions, home_region=home, priority_class=most_urgent, limits=held)
    request = api.SetTenantRequest(tenant=api.Tenant(tenant=name, policy=policy, disabled=disable))

    async def run() -> None:
        async with management(file, address) as manage:
            response: api.SetTenantResponse = await manage("SetTenant", request)
            console().print(_table([response.tenant]))

    asyncio.run(run())


@command.command("list")
@door_options
def list_tenants(file: Path | None, address: str | None) -> None:
    """Show every tenant and its policy."""

    async def run() -> None:
        async with management(file, address) as manage:
            response: api.ListTenantsResponse = await manage("ListTenants", api.ListTenantsRequest())
            console().print(_table(list(response.tenants)) if response.tenants else "There is no tenant.")

    asyncio.run(run())


def _table(tenants: list[api.Tenant]) -> Table:
    table = Table("tenant", "models", "regions", "limits", box=box.SIMPLE_HEAD)
    for tenant in tenants:
        policy = tenant.policy
        limits = [
            f"{getattr(policy.limits, window.value):,} {window.value.replace('_', ' ')}"
            for window in Window
            if policy.limits.HasField(window.value)
        ]
        kind = ["soft"] if limits and policy.limits.soft else []
        kind += [f"kept in {policy.home_region}"] if policy.home_region else []
        table.add_row(
            f"{tenant.tenant} (disabled)" if tenant.disabled else tenant.tenant,
            ", ".join(policy.models) or "all",
            ", ".join(policy.regions) or "all",
            ", ".join(limits + kind) or "none",
        )
    return table
