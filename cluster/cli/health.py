"""`argosy health`: whether a server says that it serves, for probes and scripts. Knows the standard alone."""

from __future__ import annotations

import asyncio

import click
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.cli.client import DEFAULT_ROUTER, open_channel


@click.command("health")
@click.option(
    "--address",
    default=DEFAULT_ROUTER,
    show_default=f"$ARGOSY_HEALTH_ADDRESS or {DEFAULT_ROUTER}",
    envvar="ARGOSY_HEALTH_ADDRESS",
    help="host:port of a router, or tls://host:port.",
)
@click.option("--service", default="", help="What must serve. Default: the process.")
@click.option("--timeout", type=float, default=5.0, show_default=True, help="Seconds to wait for the answer.")
def command(address: str, service: str, timeout: float) -> None:
    """Ask a router whether it serves, for probes and scripts.

    Exit status 0 if it does, else 1. Whatever speaks grpc.health.v1 can be asked, Ray's own processes too.

    \b
    Examples:
      argosy health
      argosy health --service argosy.v1.InferenceService      some model can be asked
    """
    status = asyncio.run(_ask(address, service, timeout))
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
    click.echo(f"{service or address}: {name}")
    if status != health_pb2.HealthCheckResponse.SERVING:
        click.get_current_context().exit(1)


async def _ask(address: str, service: str, seconds: float) -> health_pb2.HealthCheckResponse.ServingStatus:
    async with open_channel(address) as server:
        stub = health_pb2_grpc.HealthStub(server)
        try:
            response = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise click.ClickException(f"{address} knows no service {service!r}") from None
            raise click.ClickException(
                f"nothing answers at {address} ({error.code().name}); start one with `argosy up`, or give --address"
            ) from None
    return response.status
