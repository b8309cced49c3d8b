"""`argosy status`: what the controller knows of its replicas, as a table or as JSON."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click
import grpc.aio

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.cli.progress_screen import ProgressScreen
from cluster.cli.tables import status_view
from cluster.cli.terminal import console
from cluster.config import load_config
from cluster.peers import Identity, Role
from cluster.rpc import private_channel

DEFAULT_CONTROLLER = "127.0.0.1:50052"


@click.command("status")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="The YAML file that `argosy up` was given.")
@click.option("--address", help=f"host:port of the controller. Default: the file's, else {DEFAULT_CONTROLLER}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--watch", is_flag=True, help="Show the progress of starts until every replica is ready.")
def command(file: Path | None, address: str | None, as_json: bool, watch: bool) -> None:
    """Show replicas and ranks, and how they do.

    Exit status 0 if every replica is ready, 2 if one is not, 1 if no controller answers.

    \b
    Examples:
      argosy status
      argosy status -f examples/argosy.yaml
      argosy status --json | jq '.replicas[].state'
      argosy status --watch
    """
    config = load_config(file) if file else None
    where = address or (config.controller.listen if config else DEFAULT_CONTROLLER)
    identity = config.peers.identity(Role.OPERATOR) if config else Identity(Role.OPERATOR)
    if watch:
        asyncio.run(_watch(where, identity))
        return
    status = asyncio.run(_ask(where, identity))
    if as_json:
        from google.protobuf.json_format import MessageToDict

        click.echo(json.dumps(MessageToDict(status, preserving_proto_field_name=True), indent=2))
    else:
        console().print(f"Region {status.region}\n")
        console().print(status_view(status.replicas))
        console().print(f"Routers: {', '.join(status.router_ids) or 'none'}")
    if any(replica.state != control_pb2.REPLICA_STATE_READY for replica in status.replicas):
        click.get_current_context().exit(2)


async def _ask(address: str, identity: Identity) -> control_pb2.GetStatusResponse:
    async with private_channel(address, identity, to=Role.CONTROLLER) as controller:
        stub = control_pb2_grpc.ControlServiceStub(controller)  # type: ignore[no-untyped-call]
        try:
            status: control_pb2.GetStatusResponse = await stub.GetStatus(control_pb2.GetStatusRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            raise _no_answer(address, error) from None
    return status


async def _watch(address: str, identity: Identity) -> None:
    """Show every message of `WatchProgress` until all replicas are ready."""
    async with private_channel(address, identity, to=Role.CONTROLLER) as controller:
        stub = control_pb2_grpc.ControlServiceStub(controller)  # type: ignore[no-untyped-call]
        call = stub.WatchProgress(control_pb2.WatchProgressRequest())
        try:
            with ProgressScreen(console()) as screen:
                async for told in call:
                    screen.show(told)
                    if all(entry.status.state == control_pb2.REPLICA_STATE_READY for entry in told.replicas):
                        return
        except grpc.aio.AioRpcError as error:
            raise _no_answer(address, error) from None


def _no_answer(address: str, error: grpc.aio.AioRpcError) -> click.ClickException:
    return click.ClickException(
        f"no controller answers at {address} ({error.code().name}); "
        "start a region with `argosy up -f FILE`, or give --address or -f"
    )
