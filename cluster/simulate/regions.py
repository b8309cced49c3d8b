"""Round trips between cloud regions. Knows a published table, not who runs where.

The table is Microsoft's published median round trips between 50 Azure regions; a few cells are empty.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources

LOCAL_ROUND_TRIP = 0.001
"""Seconds between two machines of one region."""

DEFAULT_REGIONS = ("East US", "West Europe", "Southeast Asia")
"""Three continents: 84, 160 and 223 ms apart in the table."""


def round_trips(names: Sequence[str]) -> list[list[float]]:
    """Seconds between each two of `names`, symmetric, `LOCAL_ROUND_TRIP` on the diagonal.

    An empty cell takes the other direction's value; if both are empty, the shortest way over one other region (an upper
    bound, as packets may take it). Both directions known: their mean.

    Raises:
        ValueError: a name is not in the table, or two regions are not connected even over a third.
    """
    table = _read()
    for name in names:
        if name not in table:
            raise ValueError(f"region {name!r} is not in the round-trip table; known: {', '.join(sorted(table))}")
    return [
        [LOCAL_ROUND_TRIP if a == b else _between(table, a, b) for b in names]
        for a in names
    ]  # fmt: skip


def _between(table: dict[str, dict[str, float]], a: str, b: str) -> float:
    direct = _direct(table, a, b)
    if direct is not None:
        return direct
    legs = ((_direct(table, a, via), _direct(table, via, b)) for via in table if via not in (a, b))
    detours = [first + second for first, second in legs if first is not None and second is not None]
    if not detours:
        raise ValueError(f"no round trip between {a!r} and {b!r}, not even over a third region")
    return min(detours)


def _direct(table: dict[str, dict[str, float]], a: str, b: str) -> float | None:
    known = [cell for cell in (table[a].get(b), table.get(b, {}).get(a)) if cell is not None]
    return sum(known) / len(known) if known else None


def _read() -> dict[str, dict[str, float]]:
    """Seconds by source and destination, empty cells left out."""
    text = (resources.files("cluster.simulate") / "data" / "azure_region_rtt_ms.csv").read_text(encoding="utf-8")
    return {
        row["Source"]: {name: float(cell) / 1000 for name, cell in row.items() if name != "Source" and cell}
        for row in csv.DictReader(text.splitlines())
    }
