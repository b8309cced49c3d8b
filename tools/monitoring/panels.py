"""What the four dashboards show: overview, one region, one replica as stages × ranks, tenants. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.telemetry import catalogue as c
from tools.monitoring import queries as q

SECONDS, PER_SECOND, SHARE, COUNT, BYTES_RATE, FLOPS = "s", "cps", "percentunit", "short", "binBps", "flops"
"""Units as Grafana names them."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """(query, legend)."""
    help: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    variables: tuple[tuple[str, str], ...]
    """(name, query of its values)."""
    panels: tuple[Panel, ...]


def _label(name: str, metric: c.Metric) -> tuple[str, str]:
    return name, f"label_values({metric.sample}, {name})"


_REGION = _label("region", c.RUNNING)
_MODEL = _label("model", c.RUNNING)
_REPLICA = _label("replica", c.RUNNING)

OVERVIEW = Dashboard(
    "argosy-overview",
    "Argosy: overview",
    (_REGION, _MODEL),
    (
        Panel("Requests", PER_SECOND, ((f"sum by (reason) ({q.rate(c.REQUESTS, q.MODEL)})", "{{reason}}"),)),
        Panel(
            "Tokens",
            PER_SECOND,
            ((f"sum by (kind) ({q.rate(c.TOKENS, q.MODEL)})", "{{kind}}"),),
            "cached: prompt tokens that were found in a prefix cache.",
        ),
        Panel(
            "Time to first token",
            SECONDS,
            tuple(
                (q.quantile(s, c.FIRST_TOKEN, "model", q.MODEL), f"{{{{model}}}} p{s * 100:.0f}") for s in (0.5, 0.95)
            ),
        ),
        Panel(
            "Time per token",
            SECONDS,
            tuple(
                (q.quantile(s, c.TOKEN_TIME, "model", q.MODEL), f"{{{{model}}}} p{s * 100:.0f}") for s in (0.5, 0.95)
            ),
        ),
        Panel(
            "Whole requests",
            SECONDS,
            tuple(
                (q.quantile(s, c.REQUEST_TIME, "model", q.MODEL), f"{{{{model}}}} p{s * 100:.0f}") for s in (0.5, 0.95)
            ),
        ),
        Panel(
            "Streams in flight", COUNT, ((f"sum by (region) ({c.LIVE_STREAMS.sample}{{{q.REGION}}})", "{{region}}"),)
        ),
        Panel(
            "Replicas by state",
            COUNT,
            ((f"sum by (model, state) ({c.REPLICAS.sample}{{{q.MODEL}}})", "{{model}} {{state}}"),),
        ),
        Panel(
            "Moved streams",
            PER_SECOND,
            ((f"sum by (model) ({q.rate(c.CONTINUATIONS, q.MODEL)})", "{{model}}"),),
            "Times that a live stream went on at another replica.",
        ),
    ),
)

REGION = Dashboard(
    "argosy-region",
    "Argosy: one region",
    (_REGION, _MODEL),
    (
        Panel(
            "Prompt tokens computed and found",
            PER_SECOND,
            (
                (f"sum by (replica) ({q.rate(c.MISSED_TOKENS, q.MODEL)})", "{{replica}} missed"),
                (f"sum by (replica) ({q.rate(c.HIT_TOKENS, q.MODEL)})", "{{replica}} hit"),
            ),
            "Signal 1: what the prefix cache did not have is what prefill costs.",
        ),
        Panel(
            "Sequences a step",
            COUNT,
            ((q.mean(c.BATCH_SEQUENCES, "replica, phase", q.MODEL), "{{replica}} {{phase}}"),),
            "Signal 2: decode reads all weights for each step, however few sequences share it.",
        ),
        Panel(
            "KV occupancy",
            SHARE,
            ((q.occupancy(q.MODEL, "replica"), "{{replica}}"),),
            "Signal 3: from about 0.9 on requests wait for blocks, or lose them.",
        ),
        Panel(
            "Evicted blocks and preempted sequences",
            PER_SECOND,
            (
                (f"sum by (replica) ({q.rate(c.KV_EVICTIONS, q.MODEL)})", "{{replica}} evictions"),
                (f"sum by (replica) ({q.rate(c.PREEMPTIONS, q.MODEL)})", "{{replica}} preemptions"),
            ),
        ),
        Panel(
            "Running and waiting",
            COUNT,
            (
                (f"sum by (replica) ({c.RUNNING.sample}{{{q.MODEL}}})", "{{replica}} running"),
                (f"sum by (replica) ({c.WAITING.sample}{{{q.MODEL}}})", "{{replica}} waiting"),
            ),
        ),
        Panel(
            "Time in queues (p95)",
            SECONDS,
            (
                (q.quantile(0.95, c.ROUTER_QUEUE, "model", q.MODEL), "{{model}} router"),
                (q.quantile(0.95, c.ENGINE_QUEUE, "replica", q.MODEL), "{{replica}} engine"),
            ),
        ),
        Panel(
            "Gaps of moved streams",
            SECONDS,
            ((q.quantile(0.95, c.CONTINUATION_GAP, "model", q.MODEL), "{{model}} p95"),),
        ),
        Panel(
            "Ledger",
            SECONDS,
            ((f"max by (region) ({c.LEDGER_LAG.sample}{{{q.REGION}}})", "{{region}} lag"),),
        ),
        Panel(
            "Reserved tokens",
            COUNT,
            ((f"sum by (region) ({c.RESERVED_TOKENS.sample}{{{q.REGION}}})", "{{region}}"),),
        ),
        Panel(
            "Replicas built and broken",
            COUNT,
            (
                (f"sum by (replica) (increase({c.BUILDS.sample}{{{q.MODEL}}}[1h]))", "{{replica}} built"),
                (f"sum by (replica) (increase({c.FAILURES.sample}{{{q.MODEL}}}[1h]))", "{{replica}} broken"),
            ),
        ),
        Panel(
            "Starts",
            SECONDS,
            ((q.mean(c.START_TIME, "model", q.MODEL, "1h"), "{{model}}"),),
            "From a replica's start to its readiness, mean of the last hour.",
        ),
    ),
)

_AT = "stage {{stage}} rank {{rank}}"
REPLICA = Dashboard(
    "argosy-replica",
    "Argosy: one replica, stages × ranks",
    (_REGION, _MODEL, _REPLICA),
    (
        Panel(
            "MFU",
            SHARE,
            ((q.utilisation(c.RANK_FLOPS, c.RANK_PEAK_FLOPS, q.REPLICA), "stage {{stage}} {{phase}}"),),
            "Signal 4: operations done over what the device measured of itself, while it was busy. Matters in prefill.",
        ),
        Panel(
            "MBU",
            SHARE,
            ((q.utilisation(c.RANK_BYTES, c.RANK_PEAK_BYTES, q.REPLICA), "stage {{stage}} {{phase}}"),),
            "Signal 5: bytes that had to be moved over what the device measured of itself. Matters in decode.",
        ),
        Panel(
            "Bubbles",
            SHARE,
            ((q.bubble(q.REPLICA), "stage {{stage}}"),),
            "Share of the time with a step in flight in which the stage stood still.",
        ),
        Panel(
            "Busy",
            SHARE,
            ((f"sum by (stage, rank) ({q.rate(c.RANK_BUSY, q.REPLICA)})", _AT),),
            "Seconds in passes a second.",
        ),
        Panel(
            "Collectives",
            SHARE,
            ((f"sum by (stage, rank) ({q.rate(c.RANK_COLLECTIVE, q.REPLICA)})", _AT),),
            "Seconds in collectives a second. The slowest rank of a stage has the least: the others wait for it.",
        ),
        Panel(
            "Slowest rank of each stage",
            SHARE,
            ((f"bottomk by (stage) (1, sum by (stage, rank) ({q.rate(c.RANK_COLLECTIVE, q.REPLICA)}))", _AT),),
            "The rank with the least time in collectives.",
        ),
        Panel(
            "Waiting for the stage before",
            SHARE,
            ((f"sum by (stage, rank) ({q.rate(c.RANK_RECEIVE, q.REPLICA)})", _AT),),
        ),
        Panel(
            "Passes",
            PER_SECOND,
            ((f"sum by (stage, rank, phase) ({q.rate(c.RANK_STEPS, q.REPLICA)})", f"{_AT} {{{{phase}}}}"),),
        ),
        Panel(
            "Step time",
            SECONDS,
            tuple(
                (q.quantile(s, c.STEP_TIME, "phase", q.REPLICA), f"{{{{phase}}}} p{s * 100:.0f}") for s in (0.5, 0.95)
            ),
        ),
        Panel("Tokens a step", COUNT, ((q.mean(c.BATCH_TOKENS, "phase", q.REPLICA), "{{phase}}"),)),
        Panel(
            "Step coefficients",
            SECONDS,
            ((f"{c.COEFFICIENT.sample}{{{q.REPLICA}}}", "{{coefficient}}"),),
            "What the choice of a replica goes by: docs/scheduling.md.",
        ),
        Panel(
            "Sampled tokens",
            PER_SECOND,
            ((f"sum by (replica) ({q.rate(c.GENERATED_TOKENS, q.REPLICA)})", "{{replica}}"),),
        ),
        Panel("Prefix cache hits", SHARE, ((q.hit_share(q.REPLICA), "{{replica}}"),)),
        Panel("Prompt tokens waiting", COUNT, ((f"{c.PENDING_TOKENS.sample}{{{q.REPLICA}}}", "{{replica}}"),)),
        Panel(
            "Peaks: operations",
            FLOPS,
            ((f"{c.RANK_PEAK_FLOPS.sample}{{{q.REPLICA}}}", _AT),),
            "Measured at each start.",
        ),
        Panel(
            "Peaks: memory",
            BYTES_RATE,
            ((f"{c.RANK_PEAK_BYTES.sample}{{{q.REPLICA}}}", _AT),),
            "Measured at each start.",
        ),
        Panel("Epoch", COUNT, ((f"{c.EPOCH.sample}{{{q.REPLICA}}}", "{{replica}}"),), "A step up is a rebuild."),
        Panel(
            "Ranks ready",
            COUNT,
            (
                (f"{c.RANKS_READY.sample}{{{q.REPLICA}}}", "{{replica}} ready"),
                (f"{c.RANKS.sample}{{{q.REPLICA}}}", "{{replica}} in all"),
            ),
        ),
    ),
)

_TENANTS = f"sum by (tenant) ({q.rate(c.TENANT_DEVICE_TIME, q.REGION)})"
TENANTS = Dashboard(
    "argosy-tenants",
    "Argosy: tenants",
    (_REGION,),
    (
        Panel(
            "Tokens",
            PER_SECOND,
            ((f"topk(20, sum by (tenant, kind) ({q.rate(c.TENANT_TOKENS, q.REGION)}))", "{{tenant}} {{kind}}"),),
        ),
        Panel(
            "Device time",
            SHARE,
            ((f"topk(20, {_TENANTS})", "{{tenant}}"),),
            "Device-seconds a second: 2 is two devices kept busy.",
        ),
        Panel(
            "Share of device time",
            SHARE,
            (
                (
                    f"{_TENANTS} / ignoring (tenant) group_left () sum ({q.rate(c.TENANT_DEVICE_TIME, q.REGION)})",
                    "{{tenant}}",
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, REGION, REPLICA, TENANTS)
