"""`argosy apply`: make a running region what a file says, after showing what that means. Changes nothing itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from rich import box
from rich.table import Table

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.cli.terminal import console, human_bytes
from cluster.config import ArgosyConfig, load_config
from cluster.errors import Reason
from cluster.peers import Role
from cluster.rpc import private_channel, to_service_error

_ACTIONS = {
    control_pb2.APPLY_ACTION_START: "start",
    control_pb2.APPLY_ACTION_REPLACE: "replace",
    control_pb2.APPLY_ACTION_STOP: "stop",
}
_STATES = {
    control_pb2.APPLY_STATE_RUNNING: "begun",
    control_pb2.APPLY_STATE_DONE: "done",
    control_pb2.APPLY_STATE_TAKEN_BACK: "taken back",
}


@click.command("apply")
@click.option("-f", "--file", type=click.Path(path_type=Path), required=True, help="What the region shall be.")
@click.option("--address", help="host:port of the controller. Default: the file's controller.listen.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be done; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--grace", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds for running answers."
)
def command(file: Path, address: str | None, plan_only: bool, yes: bool, grace: float) -> None:
    """Make a running region what a file says: replicas, shapes, models.

    The plan is shown first: which replicas start, are replaced or end, and how much they load. They are replaced one
    after the other, and no stream breaks: what runs there finishes, or goes on at another replica. If a new one does
    not become ready, everything is taken back. Only `models` is applied; other keys need a restart of what reads them.

    \b
    Examples:
      argosy apply -f argosy.yaml --plan
      argosy apply -f argosy.yaml
    """
    config = load_config(file)
    status = asyncio.run(_apply(config, address or config.controller.listen, plan_only, yes, grace))
    click.get_current_context().exit(status)


async def _apply(config: ArgosyConfig, address: str, plan_only: bool, yes: bool, grace: float) -> int:
    request = control_pb2.ApplyRequest(configuration=config.model_dump_json(exclude_unset=True), plan_only=True)
    request.grace.CopyFrom(Duration(nanos=int(grace % 1 * 1e9), seconds=int(grace)))
    identity = config.peers.identity(Role.OPERATOR)
    async with private_channel(address, identity, to=Role.CONTROLLER) as controller:
        stub = control_pb2_grpc.ControlServiceStub(controller)  # type: ignore[no-untyped-call]
        try:
            steps = [step async for event in stub.Apply(request, timeout=30) for step in event.plan.steps]
            if not steps:
                click.echo("Nothing differs")
                return 0
            console().print(_table(steps))
            if plan_only:
                return 0
            if not yes and sys.stdin.isatty():
                click.confirm("Do that?", abort=True)
            request.plan_only = False
            return await _follow(stub, request, steps)
        except grpc.aio.AioRpcError as error:
            raise click.ClickException(_explain(error, address)) from None


async def _follow(
    stub: control_pb2_grpc.ControlServiceStub, request: control_pb2.ApplyRequest, shown: Sequence[control_pb2.ApplyStep]
) -> int:
    """Tell each step. 0 if all was done, 1 if it was taken back."""
    async for event in stub.Apply(request, timeout=24 * 3600):
        if event.HasField("plan") and list(event.plan.steps) != list(shown):
            click.echo("The region has changed since; now the plan is:")
            shown = list(event.plan.steps)
            console().print(_table(shown))
        elif event.HasField("progress"):
            step = shown[event.progress.step]
            click.echo(f"{_ACTIONS[step.action]} {step.replica_id}: {_STATES[event.progress.state]}")
        elif event.HasField("finished") and not event.finished.applied:
            click.echo(f"Taken back, because {event.finished.reason}", err=True)
            return 1
    click.echo("Applied")
    return 0


def _table(steps: Sequence[control_pb2.ApplyStep]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "replica", "difference"):
        table.add_column(name)
    for name in ("ranks", "to load"):
        table.add_column(name, justify="right")
    for step in steps:
        loads = human_bytes(step.weight_bytes) if step.weight_bytes else ""
        table.add_row(_ACTIONS[step.action], step.replica_id, step.difference, str(step.ranks or ""), loads)
    return table


def _explain(error: grpc.aio.AioRpcError, address: str) -> str:
    known = to_service_error(error)
    if known.reason is Reason.UNREACHABLE:
        return f"no controller answers at {address}; give --address, or start a region with `argosy up -f FILE`"
    return known.violations[0].description if known.violations else known.public_message
