"""`argosy simulate`: which load each routing policy holds, on a fleet that runs the production scheduling code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.simulate.cases import case
from cluster.simulate.jobs import Job, Result, run_all
from cluster.simulate.policies import OURS, POLICIES
from cluster.simulate.present import as_values, markdown_table, plot, terminal_table
from cluster.simulate.study import Table, compare
from cluster.simulate.traces import TRACES


@click.command("simulate")
@click.option("--trace", type=click.Choice(sorted(TRACES)), default="mooncake", show_default=True)
@click.option("--policies", default="all", show_default=True, help="Names with commas; Argosy's is always among them.")
@click.option("--quick", is_flag=True, help="The first minutes of the trace, one seed: a table in minutes, not hours.")
@click.option("--slack", is_flag=True, help="Replicas serve prefills by slack; else first come, first served.")
@click.option("--seeds", type=click.IntRange(1, 50), help="How many. Default: 1 with --quick, else 5.")
@click.option(
    "--reports", type=click.FloatRange(0.01, 60), default=0.1, show_default=True, help="Seconds between load reports."
)
@click.option(
    "--wrong-by",
    type=click.FloatRange(1, 10),
    default=1.0,
    show_default=True,
    help="Factor by which believed step times are wrong.",
)
@click.option(
    "--slow",
    type=click.IntRange(0, 12),
    default=0,
    show_default=True,
    help="Replicas that are half as fast again as believed.",
)
@click.option("--lose-region", type=click.IntRange(0, 2), help="Region that vanishes half-way.")
@click.option("--processes", type=click.IntRange(1, 256), help="Default: one a core.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write results.json, table.md and goodput.svg here.",
)
def command(
    trace: str,
    policies: str,
    quick: bool,
    slack: bool,
    seeds: int | None,
    reports: float,
    wrong_by: float,
    slow: int,
    lose_region: int | None,
    processes: int | None,
    output: Path | None,
) -> None:
    """Replay a published trace on a simulated fleet of three regions, for each routing policy.

    Prints the load that each one holds: at its default parameters and at its best.

    \b
    Examples:
      argosy simulate --quick
      argosy simulate --quick --policies "LMetric,Mooncake + RTT" --slack
      argosy simulate --trace azure --seeds 5 --output results
    """
    scenario: dict[str, Any] = {"report_seconds": reports, "believed_scale": wrong_by, "slow_replicas": slow}
    if lose_region is not None:
        scenario["lost_region"] = lose_region
    chosen = case(trace, slack=slack, quick=quick)
    chosen = replace(chosen, scenario={**chosen.scenario, **scenario})
    num_seeds = seeds or (1 if quick else 5)
    console = Console()
    with progress(console, processes or os.cpu_count() or 1) as run:
        table = compare(
            chosen, names(policies), range(1, num_seeds + 1), run, precision=0.02 if quick else 0.01, curve=True
        )
    console.print(terminal_table(table))
    if output is not None:
        write(output, table)
        console.print(f"Written to {output}.")


def names(wanted: str) -> list[str]:
    """Policies by name, in any case.

    Raises:
        click.BadParameter: an unknown one.
    """
    if wanted == "all":
        return list(POLICIES)
    by_lower = {name.lower(): name for name in POLICIES}
    chosen = [OURS]
    for word in wanted.split(","):
        name = by_lower.get(word.strip().lower())
        if name is None:
            raise click.BadParameter(
                f"no policy {word.strip()!r}; known: {', '.join(POLICIES)}", param_hint="--policies"
            )
        if name not in chosen:
            chosen.append(name)
    return chosen


def write(directory: Path, table: Table) -> None:
    """Leave the table in three forms."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(as_values(table), indent=1) + "\n", encoding="utf-8")
    (directory / "table.md").write_text(markdown_table(table), encoding="utf-8")
    (directory / "goodput.svg").write_text(plot(table), encoding="utf-8")


class progress:  # noqa: N801 - used like a function
    """Within the block, a function that runs jobs and shows how far they are."""

    def __init__(self, console: Console, processes: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._processes = processes

    def __enter__(self) -> Callable[[Sequence[Job]], list[Result]]:
        self._progress.start()
        return self._run

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _run(self, jobs: Sequence[Job]) -> list[Result]:
        what = "searching" if jobs[0].kind == "search" else "measuring"
        task = self._progress.add_task(what, total=len(jobs))
        return run_all(jobs, self._processes, lambda: self._progress.advance(task))
