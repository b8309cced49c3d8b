"""When somebody should look, and what is computed beforehand; docs/runbooks.md says what to do. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.telemetry import catalogue as c
from tools.monitoring import queries as q

RUNBOOKS = "docs/runbooks.md"
_OUR_FAULT = "REPLICA_LOST|NO_REPLICA|INTERNAL|LEDGER_UNAVAILABLE|OVERLOADED"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule."""

    name: str
    expression: str
    minutes: int
    """It must hold for so long."""
    severity: Literal["page", "ticket"]
    """page: users are hurt now. ticket: they will be."""
    summary: str


@dataclass(frozen=True, slots=True)
class Record:
    """A series that Prometheus computes, for queries over long times."""

    name: str
    expression: str


RECORDS = (
    Record("argosy:stage_mfu:ratio_rate5m", q.utilisation(c.RANK_FLOPS, c.RANK_PEAK_FLOPS, window="5m")),
    Record("argosy:stage_mbu:ratio_rate5m", q.utilisation(c.RANK_BYTES, c.RANK_PEAK_BYTES, window="5m")),
    Record("argosy:stage_bubble:ratio_rate5m", q.bubble(window="5m")),
    Record("argosy:kv_occupancy:ratio", q.occupancy()),
)

_COLLECTIVE = f"sum by (model, replica, stage, rank) ({q.rate(c.RANK_COLLECTIVE, window='10m')})"

ALERTS = (
    Alert(
        "ArgosyNoReplica",
        f"max by (region, model) ({c.READY_REPLICAS.sample}) == 0",
        1,
        "page",
        "No router can reach a replica of {{ $labels.model }}.",
    ),
    Alert(
        "ArgosyErrors",
        f'sum by (model) (rate({c.REQUESTS.sample}{{reason=~"{_OUR_FAULT}"}}[5m])) '
        f"/ sum by (model) (rate({c.REQUESTS.sample}[5m])) > 0.05",
        5,
        "page",
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} fail by our fault.",
    ),
    Alert(
        "ArgosySlowFirstToken",
        f"{q.quantile(0.95, c.FIRST_TOKEN, 'model', window='5m')} > 5",
        10,
        "page",
        "One request in twenty to {{ $labels.model }} waits {{ $value | humanizeDuration }} for its first token.",
    ),
    Alert(
        "ArgosySlowTokens",
        f"{q.quantile(0.95, c.TOKEN_TIME, 'model', window='5m')} > 0.25",
        10,
        "ticket",
        "One answer in twenty of {{ $labels.model }} comes at {{ $value | humanizeDuration }} a token.",
    ),
    Alert(
        "ArgosyReplicaMissing",
        f'sum by (model) ({c.REPLICAS.sample}{{state!~"ready|draining"}}) > 0',
        10,
        "ticket",
        "{{ $value }} replicas of {{ $labels.model }} are not ready.",
    ),
    Alert(
        "ArgosyReplicaBreaks",
        f"increase({c.FAILURES.sample}[15m]) > 2",
        0,
        "page",
        "{{ $labels.replica }} broke {{ $value | humanize }} times in 15 minutes.",
    ),
    Alert(
        "ArgosyStreamsMove",
        f"sum by (model) (rate({c.CONTINUATIONS.sample}[10m])) "
        f"/ sum by (model) (rate({c.REQUESTS.sample}[10m])) > 0.05",
        10,
        "ticket",
        "{{ $value | humanizePercentage }} of the streams of {{ $labels.model }} have to move.",
    ),
    Alert(
        "ArgosyRequestsWait",
        f"min_over_time({c.WAITING.sample}[10m]) > 0",
        0,
        "ticket",
        "{{ $labels.replica }} has had requests waiting for ten minutes without a break.",
    ),
    Alert(
        "ArgosyKvFull",
        f"{q.occupancy()} > 0.95",
        10,
        "ticket",
        "{{ $value | humanizePercentage }} of the KV blocks of {{ $labels.replica }} are held.",
    ),
    Alert(
        "ArgosyPreemptions",
        f"rate({c.PREEMPTIONS.sample}[10m]) > 0.1",
        10,
        "ticket",
        "{{ $labels.replica }} takes blocks away from running sequences and computes them anew.",
    ),
    Alert(
        "ArgosyBubbles",
        f"({q.bubble(window='10m')} > 0.5) and on (model, replica) rate({c.ACTIVE_TIME.sample}[10m]) > 0.5",
        15,
        "ticket",
        "Stage {{ $labels.stage }} of {{ $labels.replica }} stands still for {{ $value | humanizePercentage }} of it.",
    ),
    Alert(
        "ArgosySlowRank",
        f"max by (model, replica, stage) ({_COLLECTIVE}) - min by (model, replica, stage) ({_COLLECTIVE}) > 0.3",
        15,
        "ticket",
        "In stage {{ $labels.stage }} of {{ $labels.replica }} the other ranks wait for one that is slower.",
    ),
    Alert(
        "ArgosyLedgerLags",
        f"{c.LEDGER_LAG.sample} > 5",
        1,
        "page",
        "The ledger's disk or server has not answered for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "ArgosyNotScraped",
        'up{job=~"argosy-.*"} == 0',
        5,
        "ticket",
        "{{ $labels.job }} at {{ $labels.instance }} does not answer scrapes.",
    ),
)
