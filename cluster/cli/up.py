"""`argosy up`: a region in the foreground. Checks everything first, shows the start, stays, takes it all down."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console

from argosy.internal.v1 import control_pb2
from cluster.cli.neighbours import Neighbours, multiply
from cluster.cli.preflight import preflight
from cluster.cli.processes import end_with_parent, process_age
from cluster.cli.progress import wait_until_ready
from cluster.cli.region import Region, StoppedError
from cluster.cli.tables import plan_table, state_name
from cluster.cli.terminal import console
from cluster.config import load_config

START_ATTEMPTS = 2
SUPERVISE_SECONDS = 1.0


@click.command("up")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    default=Path("argosy.yaml"),
    show_default=True,
    help="What to run.",
)
@click.option("--check", is_flag=True, help="Check the file and print the plan; start nothing.")
@click.option(
    "--without-router", is_flag=True, help="Start no router: those of other machines will ask the controller."
)
@click.option(
    "--keep",
    is_flag=True,
    help="On a Ray cluster that runs already: leave the region running at the end, and take over what one left.",
)
@click.option(
    "--regions",
    type=int,
    metavar="N",
    help="Run N regions on this machine, as far apart as real ones: docs/regions.md.",
)
@click.option("--exit-with-parent", is_flag=True, hidden=True)
def command(
    file: Path, check: bool, without_router: bool, keep: bool, regions: int | None, exit_with_parent: bool
) -> None:
    """Start everything that a YAML file describes; Ctrl-C ends it.

    The file, the checkpoints, the way each model is cut, and the ports are checked before anything starts. Then the
    plan is printed, then the progress of every rank, then where to call. Ctrl-C or SIGTERM ends all of it in order; a
    second one at once.

    \b
    Examples:
      argosy up -f examples/argosy.yaml
      argosy up -f examples/argosy.yaml --check
      argosy up -f examples/argosy.yaml --regions 3
      argosy up -f region.yaml --without-router --keep    beside a Ray head; routers and nodes come and go
    """
    config = load_config(file)
    screen = console()
    if exit_with_parent:
        end_with_parent()
    neighbours = Neighbours()
    if regions is not None:
        config, neighbours = multiply(config, regions, screen)
    plans = preflight(config, with_router=not without_router, keep=keep)
    if check:
        for plan in plans:
            screen.print(plan_table(plan))
        screen.print(f"{file}: fine")
        return
    region = Region(config, with_router=not without_router, keep=keep)
    try:
        with region, ExitStack() as end:
            region.settle(plans, screen)
            screen.print(f"Starting; logs are in {region.directory}")
            region.start(screen)
            end.callback(neighbours.end, config.router.drain_seconds)
            neighbours.start(region.directory, region.ray_address)
            # Nodes of a cluster may come later, so there every start is worth another.
            wait_until_ready(region, console(stderr=True), attempts=sys.maxsize if keep else START_ATTEMPTS)
            neighbours.wait_until_ready(region.stop_request)
            _greet(screen, region, neighbours, with_router=not without_router)
            _stay(screen, region, neighbours)
            if keep:
                screen.print("Leaving the region to run on; the same command takes it over")
            else:
                screen.print("Stopping once running answers are out; a second Ctrl-C stops at once")
    except StoppedError:
        screen.print("Stopped before everything was up")
        click.get_current_context().exit(128 + region.stop_request.signal)
    screen.print("Stopped")


def _greet(screen: Console, region: Region, neighbours: Neighbours, *, with_router: bool) -> None:
    address = region.config.router.listen
    names = ", ".join(model.name for model in region.config.models)
    where = "" if address.endswith(":50051") else f" --address {address}"
    screen.print(f"\nReady after {process_age():.1f} s, serving {names}")
    if with_router:
        screen.print(f"  gRPC   {address}")
        if (http := region.config.router.http_listen) is not None:
            scheme = "https" if region.config.router.tls else "http"
            screen.print(f"  HTTP   {scheme}://{http}/v1, as OpenAI's clients speak it", markup=False)
        screen.print(f"  ask    argosy generate{where} 'Why is the sky blue?'", markup=False)
        screen.print(f"  talk   argosy chat{where}")
    else:
        screen.print("  route  argosy router -f FILE --controller HOST:PORT")
    for name, router in neighbours.routers:
        screen.print(f"  {name}: gRPC {router}", markup=False)
    # Only the file names the certificates that the controller asks for.
    controller = "-f FILE" if region.config.peers.certificate else f"--address {region.config.controller.listen}"
    screen.print(f"  watch  argosy status {controller}")
    screen.print("Ctrl-C ends it.")


def _stay(screen: Console, region: Region, neighbours: Neighbours) -> None:
    """Tell what changes until a signal comes."""
    states: dict[str, tuple[int, int]] = {}
    while not region.stop_request.wait(SUPERVISE_SECONDS):
        for event in region.supervise():
            screen.print(event, markup=False)
        for name in neighbours.lost():
            screen.print(f"region {name} ended; the others serve without it", markup=False)
        try:
            status = region.status()
        except StoppedError:
            return
        for replica in status.replicas if status else ():
            now = (replica.state, replica.epoch)
            if states.setdefault(replica.replica_id, now) != now:
                states[replica.replica_id] = now
                screen.print(_news(replica), markup=False)


def _news(replica: control_pb2.ReplicaStatus) -> str:
    reason = f": {replica.reason}" if replica.reason else ""
    return f"{replica.replica_id} epoch {replica.epoch} is {state_name(replica)}{reason}"
