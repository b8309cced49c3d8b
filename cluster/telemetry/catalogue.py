"""Every metric by name, unit and meaning: what instruments are made from, and docs/metrics.md too. Counts nothing.

Names follow the Prometheus convention: base units (seconds, bytes, ratio of 1), and `_total` for counters, which the
exposition adds. A label's values are few and known beforehand: models, replicas, stages, ranks, phases, reasons of the
error catalogue; tenants are bounded by `MAX_TENANTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

MAX_TENANTS = 20
"""Tenants with a label of their own at one router; the rest share `OTHER_TENANTS`."""
OTHER_TENANTS = "_other"

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# As OpenTelemetry's semantic conventions for generative AI give them.
GEN_AI_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
GEN_AI_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
GEN_AI_TOKENS = tuple(4.0**power for power in range(14))


@dataclass(frozen=True, slots=True)
class Metric:
    """One family."""

    name: str
    """Without `_total`."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def sample(self) -> str:
        """What queries call it; a histogram's counts end in `_bucket`, `_sum` and `_count` besides."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


# Router

REQUESTS = Metric(
    "argosy_router_requests", "counter", "Requests that ended, by reason: OK or an error's.", ("model", "reason")
)
LIVE_STREAMS = Metric("argosy_router_live_streams", "gauge", "Requests in flight.")
TOKENS = Metric("argosy_router_tokens", "counter", "Tokens, by kind: prompt, cached, completion.", ("model", "kind"))
FIRST_TOKEN = Metric(
    "argosy_router_first_token_seconds",
    "histogram",
    "From a request's arrival to its first accepted token (TTFT).",
    ("model",),
    SECONDS,
)
TOKEN_TIME = Metric(
    "argosy_router_token_seconds",
    "histogram",
    "Mean time between a request's tokens after the first, one observation a request (TPOT).",
    ("model",),
    TOKEN_SECONDS,
)
REQUEST_TIME = Metric(
    "argosy_router_request_seconds", "histogram", "From a request's arrival to its end.", ("model",), SECONDS
)
ROUTER_QUEUE = Metric(
    "argosy_router_queue_seconds",
    "histogram",
    "From a request's arrival until a replica was sent it: checks, tokenising, ledger, choice.",
    ("model",),
    SECONDS,
)
CONTINUATIONS = Metric(
    "argosy_router_continuations", "counter", "Times that a live stream went on at another replica.", ("model",)
)
CONTINUATION_GAP = Metric(
    "argosy_router_continuation_gap_seconds",
    "histogram",
    "From a replica's loss, as the router noticed it, to the stream's next token from another one.",
    ("model",),
    SECONDS,
)
READY_REPLICAS = Metric("argosy_router_ready_replicas", "gauge", "Replicas that can be sent a request.", ("model",))
RESERVED_TOKENS = Metric(
    "argosy_router_reserved_tokens", "gauge", "Completion tokens that open requests have reserved in the ledger."
)
LEDGER_LAG = Metric(
    "argosy_router_ledger_lag_seconds",
    "gauge",
    "How long the ledger's commit has been running; 0 if none is.",
)
LEDGER_WAITING = Metric("argosy_router_ledger_waiting_changes", "gauge", "Changes that wait for the ledger's disk.")
TENANT_TOKENS = Metric(
    "argosy_router_tenant_tokens",
    "counter",
    f"Tokens by tenant and kind. The {MAX_TENANTS} tenants seen first have names, all others are {OTHER_TENANTS}.",
    ("tenant", "kind"),
)
TENANT_DEVICE_TIME = Metric(
    "argosy_router_tenant_device_seconds",
    "counter",
    "Device time by tenant: each step's length times its ranks, shared out by the tokens that it computed.",
    ("tenant",),
)
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
GEN_AI_REQUEST = Metric(
    "gen_ai_server_request_duration_seconds",
    "histogram",
    "OpenTelemetry's name for argosy_router_request_seconds.",
    _GEN_AI,
    GEN_AI_DURATION,
)
GEN_AI_FIRST_TOKEN = Metric(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "OpenTelemetry's name for argosy_router_first_token_seconds.",
    _GEN_AI,
    GEN_AI_FIRST,
)
GEN_AI_TOKEN_TIME = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "OpenTelemetry's name for argosy_router_token_seconds.",
    _GEN_AI,
    TOKEN_SECONDS,
)
GEN_AI_USAGE = Metric(
    "gen_ai_client_token_usage_tokens",
    "histogram",
    "Tokens of a request, by type: input or output.",
    (*_GEN_AI, "gen_ai_token_type"),
    GEN_AI_TOKENS,
)
ROUTER_METRICS = (
    REQUESTS,
    LIVE_STREAMS,
    TOKENS,
    FIRST_TOKEN,
    TOKEN_TIME,
    REQUEST_TIME,
    ROUTER_QUEUE,
    CONTINUATIONS,
    CONTINUATION_GAP,
    READY_REPLICAS,
    RESERVED_TOKENS,
    LEDGER_LAG,
    LEDGER_WAITING,
    TENANT_TOKENS,
    TENANT_DEVICE_TIME,
    GEN_AI_REQUEST,
    GEN_AI_FIRST_TOKEN,
    GEN_AI_TOKEN_TIME,
    GEN_AI_USAGE,
)

# Engine. Every label list begins with what names the engine.

_REPLICA = ("model", "replica")
_PHASE = (*_REPLICA, "phase")
_RANK = (*_REPLICA, "stage", "rank")
_RANK_PHASE = (*_RANK, "phase")

STEP_TIME = Metric(
    "argosy_engine_step_seconds",
    "histogram",
    "Length of a step at the output rank. A step with any prompt token is of phase prefill, others are decode.",
    _PHASE,
    TOKEN_SECONDS,
)
BATCH_SEQUENCES = Metric("argosy_engine_batch_sequences", "histogram", "Sequences in a step.", _PHASE, COUNTS)
BATCH_TOKENS = Metric("argosy_engine_batch_tokens", "histogram", "Tokens in a step.", _PHASE, COUNTS)
MISSED_TOKENS = Metric(
    "argosy_engine_cache_missed_tokens", "counter", "Prompt tokens that had to be computed.", _REPLICA
)
HIT_TOKENS = Metric(
    "argosy_engine_cache_hit_tokens", "counter", "Prompt tokens that were found in the prefix cache.", _REPLICA
)
GENERATED_TOKENS = Metric("argosy_engine_generated_tokens", "counter", "Tokens that were sampled.", _REPLICA)
RUNNING = Metric("argosy_engine_running_sequences", "gauge", "Sequences that decode.", _REPLICA)
WAITING = Metric("argosy_engine_waiting_requests", "gauge", "Requests whose prompt is not computed yet.", _REPLICA)
PENDING_TOKENS = Metric(
    "argosy_engine_pending_prefill_tokens", "gauge", "Prompt tokens still to be computed, all requests.", _REPLICA
)
KV_USED = Metric("argosy_engine_kv_used_blocks", "gauge", "KV blocks that requests hold.", _REPLICA)
KV_TOTAL = Metric("argosy_engine_kv_blocks", "gauge", "KV blocks in all.", _REPLICA)
KV_EVICTIONS = Metric(
    "argosy_engine_kv_evictions", "counter", "Cached prefix blocks given up for running requests.", _REPLICA
)
PREEMPTIONS = Metric(
    "argosy_engine_preemptions", "counter", "Sequences that lost slot and blocks and start over.", _REPLICA
)
ENGINE_QUEUE = Metric(
    "argosy_engine_queue_seconds",
    "histogram",
    "From a request's arrival at the engine to its first step.",
    _REPLICA,
    SECONDS,
)
ACTIVE_TIME = Metric(
    "argosy_engine_active_seconds", "counter", "Time during which at least one step was in flight.", _REPLICA
)
COEFFICIENT = Metric(
    "argosy_engine_step_coefficient_seconds",
    "gauge",
    "Fitted length of steps, the six numbers of docs/scheduling.md, seconds each.",
    (*_REPLICA, "coefficient"),
)
EPOCH = Metric("argosy_engine_epoch", "gauge", "Times that the replica's ranks were built.", _REPLICA)
RANK_BUSY = Metric(
    "argosy_rank_busy_seconds",
    "counter",
    "Time in passes, collectives included, waiting for the stage before excluded.",
    _RANK_PHASE,
)
RANK_STEPS = Metric("argosy_rank_steps", "counter", "Passes.", _RANK_PHASE)
RANK_FLOPS = Metric(
    "argosy_rank_flops",
    "counter",
    "Useful floating-point operations, two a multiply-add; padding and recomputation for padding left out.",
    _RANK_PHASE,
)
RANK_BYTES = Metric(
    "argosy_rank_memory_bytes",
    "counter",
    "Bytes that passes must read or write at least: weights once a step, keys and values once.",
    _RANK_PHASE,
)
RANK_COLLECTIVE = Metric(
    "argosy_rank_collective_seconds",
    "counter",
    "Time in collectives of the stage, waiting for its slower ranks included: the slowest rank has the least.",
    _RANK,
)
RANK_RECEIVE = Metric("argosy_rank_receive_seconds", "counter", "Time spent waiting for the stage before.", _RANK)
RANK_PEAK_FLOPS = Metric(
    "argosy_rank_peak_flops_per_second",
    "gauge",
    "What the rank's device reached in a large matrix product when it started.",
    _RANK,
)
RANK_PEAK_BYTES = Metric(
    "argosy_rank_peak_memory_bytes_per_second",
    "gauge",
    "What the rank's device reached in reading memory when it started.",
    _RANK,
)
VLLM_WAITING = Metric(
    "vllm:num_requests_waiting", "gauge", "argosy_engine_waiting_requests under the name that others use.", _REPLICA
)
VLLM_RUNNING = Metric(
    "vllm:num_requests_running", "gauge", "argosy_engine_running_sequences under the name that others use.", _REPLICA
)
VLLM_KV = Metric(
    "vllm:kv_cache_usage_perc",
    "gauge",
    "Used share of the KV blocks, 0 to 1, under the name that others use.",
    _REPLICA,
)
ENGINE_METRICS = (
    STEP_TIME,
    BATCH_SEQUENCES,
    BATCH_TOKENS,
    MISSED_TOKENS,
    HIT_TOKENS,
    GENERATED_TOKENS,
    RUNNING,
    WAITING,
    PENDING_TOKENS,
    KV_USED,
    KV_TOTAL,
    KV_EVICTIONS,
    PREEMPTIONS,
    ENGINE_QUEUE,
    ACTIVE_TIME,
    COEFFICIENT,
    EPOCH,
    RANK_BUSY,
    RANK_STEPS,
    RANK_FLOPS,
    RANK_BYTES,
    RANK_COLLECTIVE,
    RANK_RECEIVE,
    RANK_PEAK_FLOPS,
    RANK_PEAK_BYTES,
    VLLM_WAITING,
    VLLM_RUNNING,
    VLLM_KV,
)

# Controller

REPLICAS = Metric("argosy_controller_replicas", "gauge", "Wanted replicas, by what they are doing.", ("model", "state"))
RANKS_READY = Metric("argosy_controller_ready_ranks", "gauge", "Ranks that can run steps.", ("model", "replica"))
RANKS = Metric("argosy_controller_ranks", "gauge", "Ranks that the replica has when it is whole.", ("model", "replica"))
BUILDS = Metric(
    "argosy_controller_replica_builds", "counter", "Times that a replica was started.", ("model", "replica")
)
FAILURES = Metric(
    "argosy_controller_replica_failures", "counter", "Times that a replica was found broken.", ("model", "replica")
)
START_TIME = Metric(
    "argosy_controller_replica_start_seconds",
    "histogram",
    "From a replica's start to its readiness.",
    ("model",),
    SECONDS,
)
CONTROLLER_METRICS = (REPLICAS, RANKS_READY, RANKS, BUILDS, FAILURES, START_TIME)

CATALOGUE: dict[str, tuple[Metric, ...]] = {
    "router": ROUTER_METRICS,
    "engine": ENGINE_METRICS,
    "controller": CONTROLLER_METRICS,
}
"""By the process that exports them."""
