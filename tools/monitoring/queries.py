"""The queries behind panels and alerts, over names of the catalogue. Knows PromQL; draws nothing.

`WINDOW` stands for the time over which rates are taken: a panel's own interval, or what an alert says.
"""

from __future__ import annotations

from cluster.telemetry import catalogue as c
from cluster.telemetry.catalogue import Metric

WINDOW = "$__rate_interval"
REGION = 'region=~"$region"'
MODEL = f'{REGION}, model=~"$model"'
REPLICA = f'{MODEL}, replica=~"$replica"'

_STAGE = "model, replica, stage"


def rate(metric: Metric, where: str = "", window: str = WINDOW) -> str:
    """Increase of a counter a second."""
    return f"rate({metric.sample}{{{where}}}[{window}])"


def quantile(share: float, metric: Metric, by: str, where: str = "", window: str = WINDOW) -> str:
    """A quantile of a histogram's recent observations."""
    grouped = f"sum by ({by + ', ' if by else ''}le) (rate({metric.name}_bucket{{{where}}}[{window}]))"
    return f"histogram_quantile({share}, {grouped})"


def mean(metric: Metric, by: str, where: str = "", window: str = WINDOW) -> str:
    """Mean of a histogram's recent observations."""
    total, count = (f"sum by ({by}) (rate({metric.name}_{part}{{{where}}}[{window}]))" for part in ("sum", "count"))
    return f"{total} / {count}"


def utilisation(work: Metric, peak: Metric, where: str = "", window: str = WINDOW) -> str:
    """MFU or MBU: of what a stage's devices could have done while they were busy, the share that was useful work."""
    done = f"sum by ({_STAGE}, phase) ({rate(work, where, window)})"
    busy = f"sum by ({_STAGE}, phase) ({rate(c.RANK_BUSY, where, window)})"
    best = f"avg by ({_STAGE}) ({peak.sample}{{{where}}})"
    return f"{done} / ({busy} * on ({_STAGE}) group_left () {best})"


def bubble(where: str = "", window: str = WINDOW) -> str:
    """Share of the time with work in flight in which a stage stood still."""
    ranks = f"sum by ({_STAGE}, rank) ({rate(c.RANK_BUSY, where, window)})"
    active = f"sum by (model, replica) ({rate(c.ACTIVE_TIME, where, window)})"
    return f"1 - avg by ({_STAGE}) ({ranks}) / on (model, replica) group_left () {active}"


def occupancy(where: str = "", by: str = "model, replica") -> str:
    """Share of the KV blocks that requests hold."""
    return f"sum by ({by}) ({c.KV_USED.sample}{{{where}}}) / sum by ({by}) ({c.KV_TOTAL.sample}{{{where}}})"


def hit_share(where: str = "", by: str = "model, replica", window: str = WINDOW) -> str:
    """Share of prompt tokens that the prefix cache had."""
    hits, missed = (f"sum by ({by}) ({rate(metric, where, window)})" for metric in (c.HIT_TOKENS, c.MISSED_TOKENS))
    return f"{hits} / ({hits} + {missed})"
