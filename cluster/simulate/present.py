"""A study's outcome as a table for a terminal, as Markdown, and as plain values for JSON. Knows no simulation."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean
from typing import Any

from rich import box
from rich.table import Table as RichTable

from cluster.simulate.goodput import Targets
from cluster.simulate.jobs import GOOD_ENOUGH
from cluster.simulate.plot import Line, goodput_plot
from cluster.simulate.policies import OURS, POLICIES
from cluster.simulate.policies.base import Setting
from cluster.simulate.study import Row, Table

COLUMNS = (
    "policy",
    "load held",
    "best tuning",
    "with it",
    "ours is",
    "goodput",
    "TTFT p50",
    "p99",
    "TPOT p99",
    "hits",
    "away",
)


def terminal_table(table: Table) -> RichTable:
    """For people at a terminal."""
    rich = RichTable(
        title=heading(table), caption=legend(table), title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD
    )
    for name in COLUMNS:
        rich.add_column(name, justify="left" if name in ("policy", "best tuning") else "right")
    for row in table.rows:
        rich.add_row(*cells(table, row), style="bold" if row.policy == OURS else None)
    return rich


def markdown_table(table: Table) -> str:
    """For a document."""
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join("---" if name in ("policy", "best tuning") else "--:" for name in COLUMNS) + "|",
    ]
    for row in table.rows:
        shown = cells(table, row)
        if row.policy == OURS:
            shown = [f"**{cell}**" if cell else "" for cell in shown]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join([f"**{heading(table)}**", "", *lines, "", f"<sub>{legend(table)}</sub>", ""])


def heading(table: Table) -> str:
    """What the table is of, and the one figure that matters."""
    return f"{table.case.title}: Argosy holds {table.lead:.2f} × the load of the best other policy"


def legend(table: Table) -> str:
    """What the columns mean."""
    targets = Targets()
    return (
        f"Load held: multiple of the recorded rate at {GOOD_ENOUGH:.0%} goodput, mean of {len(table.seeds)} seed(s), "
        f"± half their range. The columns from goodput on are at {table.case.load:g}×, best tuning. Good: first token "
        f"within {targets.ttft_seconds:g} s + {targets.ttft_seconds_per_token * 1000:g} s per 1,000 prompt tokens, "
        f"then at most {targets.tpot_seconds * 1000:g} ms a token on average. Hits: prompt tokens found cached. "
        "Away: served outside the home region."
    )


def cells(table: Table, row: Row) -> list[str]:
    """A row's texts."""
    ours = next(other for other in table.rows if other.policy == OURS)
    tuned = row.best != POLICIES[row.policy].default
    at_load = row.at_load
    return [
        row.policy,
        spread(row.held_default),
        setting(row.best) if tuned else "",
        spread(row.held_best) if tuned else "",
        "" if row is ours else f"{ours.held / row.held:.2f} ×",
        f"{at_load['goodput']:.1%}",
        f"{at_load['ttft_p50']:.2f} s",
        f"{at_load['ttft_p99']:.1f} s",
        f"{at_load['tpot_p99'] * 1000:.0f} ms",
        f"{at_load['hit_share']:.1%}",
        f"{at_load['remote_share']:.0%}",
    ]


def spread(loads: list[float]) -> str:
    """Mean and half the range."""
    half = (max(loads) - min(loads)) / 2
    return f"{mean(loads):.2f}×" + (f" ± {half:.2f}" if len(loads) > 1 else "")


def setting(values: Setting) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def plot(table: Table) -> str:
    """The table's curves as SVG."""
    lines = [Line(row.policy, row.curve, row.policy == OURS) for row in table.rows]
    return goodput_plot("Goodput against load", table.case.title, lines, GOOD_ENOUGH)


def as_values(table: Table) -> dict[str, Any]:
    """For JSON."""
    return {**asdict(table), "lead": table.lead}
