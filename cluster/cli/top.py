"""`argosy top`: the fleet as it is now, every second: regions, replicas, and a grid of stages and ranks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.cli.terminal import console
from cluster.clock import SystemClock
from cluster.config import load_config
from cluster.overview.figures import RankView, RegionView, ReplicaView
from cluster.overview.poll import Place, overviews, places_of
from cluster.peers import Identity, Role

DEFAULT_CONTROLLER = "127.0.0.1:50052"
_STYLES = {"ready": "green", "failed": "red", "pending": "yellow", "loading": "cyan", "draining": "magenta"}
_GAUGE = " ▏▎▍▌▋▊▉█"
_GAUGE_CELLS = 8


@click.command("top")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="The YAML file that `argosy up` was given.")
@click.option(
    "--address", multiple=True, help=f"A controller's host:port; again for more. Default: {DEFAULT_CONTROLLER}."
)
@click.option(
    "--every", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds between readings."
)
@click.option("--once", is_flag=True, help="Print one view, of two readings, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each reading, for programs.")
def command(file: Path | None, address: tuple[str, ...], every: float, once: bool, as_json: bool) -> None:
    """Watch regions, replicas and ranks as they work, until Ctrl-C.

    Of a replica: answers that run and wait, KV blocks held, tokens a second, prompt tokens that missed the
    prefix cache, and the share that hit it. Of a rank, in a grid of stages and tensor ranks: steps a second,
    and MFU and MBU, the shares of its device's arithmetic and memory that did useful work while it was busy.

    \b
    Examples:
      argosy top
      argosy top -f examples/argosy.yaml
      argosy top --address 10.0.0.1:50052 --address 10.1.0.1:50052
      argosy top --once --json | jq '.regions[].replicas[].hit_share'
    """
    config = load_config(file) if file else None
    places = (
        places_of(config) if config and not address else [Place(at, (at,)) for at in address or (DEFAULT_CONTROLLER,)]
    )
    identity = config.peers.identity(Role.OPERATOR) if config else Identity(Role.OPERATOR)
    failed = asyncio.run(_watch(places, identity, every, once, as_json))
    if failed:
        raise click.ClickException("; ".join(failed))


async def _watch(places: Sequence[Place], identity: Identity, every: float, once: bool, as_json: bool) -> list[str]:
    """Show until interrupted; with `once` the second reading alone. Returns why, if no region answered then."""
    screen = console()
    readings = 0
    with Live(console=screen, screen=screen.is_terminal and not once and not as_json, auto_refresh=False) as live:
        async for regions in overviews(places, identity, SystemClock(), every):
            readings += 1
            problems = [region.problem for region in regions if region.problem]
            if once and len(problems) == len(regions):
                return problems
            if once and readings < 2:
                continue
            if as_json:
                screen.print(json.dumps({"regions": [asdict(region) for region in regions]}), soft_wrap=True)
            else:
                live.update(view(regions), refresh=True)
            if once:
                return []
    return []


def view(regions: Sequence[RegionView]) -> Group:
    """Everything, region by region."""
    parts: list[RenderableType] = []
    for region in regions:
        heading = Text.assemble((region.name, "bold"), f"  {region.controller}")
        if region.problem:
            parts.append(heading.append(f"  {region.problem}", "red"))
            continue
        running = sum(replica.running for replica in region.replicas)
        heading.append(f"  {region.routers} router(s), {len(region.replicas)} replica(s), {running} answers run")
        parts.append(heading)
        parts.append(_replica_table(region.replicas))
        parts.extend(_rank_grid(replica) for replica in region.replicas if replica.ranks)
    return Group(*parts)


def _replica_table(replicas: Sequence[ReplicaView]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("replica", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("epoch", "run", "wait", "to prefill", "tokens/s", "missed/s", "hits"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("KV held", no_wrap=True)
    for replica in replicas:
        table.add_row(
            replica.replica_id,
            Text(replica.state, _STYLES.get(replica.state, "")),
            str(replica.epoch),
            str(replica.running),
            str(replica.waiting),
            f"{replica.pending_tokens:,}",
            _number(replica.tokens_per_second),
            _number(replica.missed_per_second),
            _percent(replica.hit_share),
            f"{gauge(replica.kv_share)} {replica.used_blocks:,}/{replica.total_blocks:,}",
        )
        if replica.reason:
            table.add_row("", Text(replica.reason, "dim"))
    return table


def _rank_grid(replica: ReplicaView) -> Table:
    """Stages as rows, tensor ranks as columns."""
    stages = sorted({rank.stage for rank in replica.ranks})
    width = 1 + max(rank.tensor_rank for rank in replica.ranks)
    table = Table(title=f"{replica.replica_id}: stage × rank", title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("stage")
    for tensor_rank in range(width):
        table.add_column(f"rank {tensor_rank}", no_wrap=True)
    cells = {(rank.stage, rank.tensor_rank): _rank_cell(rank) for rank in replica.ranks}
    for stage in stages:
        table.add_row(str(stage), *(cells.get((stage, tensor_rank), Text()) for tensor_rank in range(width)))
    return table


def _rank_cell(rank: RankView) -> Text:
    where = f"{rank.node} {rank.device}"
    if rank.phase != "ready":
        style = "red" if rank.phase == "lost" else "cyan"
        return Text.assemble(where, "\n", (f"{rank.phase} {rank.loaded:.0%}", style))
    text = Text.assemble(where, ("  slow", "yellow") if rank.slow else "")
    text.append(f"\nstep {rank.step:,}, {_number(rank.steps_per_second)}/s")
    text.append(f"\nMFU {_percent(rank.mfu)}, MBU {_percent(rank.mbu)}")
    return text.append(f"\nbusy {_percent(rank.busy)}, {_percent(rank.waiting)} of it in collectives")


def gauge(share: float) -> str:
    """A bar of eight cells."""
    eighths = round(min(max(share, 0.0), 1.0) * _GAUGE_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return (_GAUGE[8] * full + (_GAUGE[rest] if rest else "")).ljust(_GAUGE_CELLS)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
