"""`argosy drain`: ask the controller that something leaves in order. Knows what a user says; stops nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc.aio

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.cli.status import DEFAULT_CONTROLLER
from cluster.config import load_config
from cluster.errors import Reason
from cluster.peers import Identity, Role
from cluster.rpc import private_channel, to_service_error

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group("drain")
def command() -> None:
    """End a replica, the replicas of a node, or a router, in order.

    It takes nothing new; what runs there finishes within the grace period or goes on elsewhere, at the right token.
    The command returns when that is done.

    \b
    Examples:
      argosy drain replica smollm2-135m-instruct/0 --restart
      argosy drain node 10.0.0.5
      argosy drain node 10.0.0.5 --undo
      argosy drain router router_3f9a0c12d4e5
    """


def _options(command: _Command) -> _Command:
    """Where to ask, and how long what runs may take."""
    options = [
        click.option("-f", "--file", type=click.Path(path_type=Path), help="The YAML file that `argosy up` was given."),
        click.option("--address", help=f"host:port of the controller. Default: the file's, else {DEFAULT_CONTROLLER}."),
        click.option("--grace", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds."),
        click.option(
            "--timeout", type=click.FloatRange(min=1), default=900.0, show_default=True, help="Seconds to wait for it."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@command.command("replica")
@click.argument("replica_id")
@click.option("--restart", is_flag=True, help="Build it again, and return when it is ready.")
@click.option("--undo", is_flag=True, help="Let a drained replica start again.")
@_options
def replica(replica_id: str, restart: bool, undo: bool, **where: Any) -> None:
    """End a replica, such as `MODEL/0`; it rests until --undo, or is built again with --restart.

    \b
    Examples:
      argosy drain replica smollm2-135m-instruct/0
      argosy drain replica smollm2-135m-instruct/0 --undo
    """
    _order(control_pb2.DrainRequest(replica_id=replica_id, restart=restart, undo=undo), **where)


@command.command("node")
@click.argument("host")
@click.option("--undo", is_flag=True, help="Use the node again.")
@_options
def node(host: str, undo: bool, **where: Any) -> None:
    """Move every replica off a node, as `argosy status` names it, and place nothing on it until --undo.

    \b
    Examples:
      argosy drain node 10.0.0.5 --grace 120
      argosy drain node 10.0.0.5 --undo
    """
    _order(control_pb2.DrainRequest(node=host, undo=undo), **where)


@command.command("router")
@click.argument("router_id")
@_options
def router(router_id: str, **where: Any) -> None:
    """End a router once its answers are out, after its own `drain_seconds` at the latest.

    Clients whose answers are cut then go on at another router. `argosy up`, and Kubernetes, start a new one.

    \b
    Examples:
      argosy drain router router_3f9a0c12d4e5
    """
    _order(control_pb2.DrainRequest(router_id=router_id), **where)


def _order(
    request: control_pb2.DrainRequest, file: Path | None, address: str | None, grace: float, timeout: float
) -> None:
    config = load_config(file) if file else None
    where = address or (config.controller.listen if config else DEFAULT_CONTROLLER)
    identity = config.peers.identity(Role.OPERATOR) if config else Identity(Role.OPERATOR)
    request.grace.FromNanoseconds(round(grace * 1e9))
    asyncio.run(_ask(request, where, identity, timeout))
    click.echo("done")


async def _ask(request: control_pb2.DrainRequest, address: str, identity: Identity, seconds: float) -> None:
    async with private_channel(address, identity, to=Role.CONTROLLER) as controller:
        stub = control_pb2_grpc.ControlServiceStub(controller)  # type: ignore[no-untyped-call]
        try:
            await stub.Drain(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                text = f"not done after {seconds:.0f} s; the order stands, `argosy status` shows how far it is"
            elif (known := to_service_error(error)).reason is Reason.UNREACHABLE:
                text = f"no controller answers at {address}; give --address or -f"
            else:
                text = known.public_message
            raise click.ClickException(text) from None
