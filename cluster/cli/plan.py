"""`argosy plan`: how a model would be served by devices that are not there, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich import box
from rich.table import Table

from cluster.cli.terminal import console
from cluster.control.capacity.choose import CapacityPlan, Rejected, StagePlan, Workload, choose_plan
from cluster.control.capacity.devices import KINDS, PER_NODE, LinkDomain, parse_fleet
from cluster.control.capacity.references import REFERENCES, read_model
from cluster.errors import ConfigurationError

_SHOWN = 8


@click.command("plan")
@click.argument("model")
@click.option("--devices", required=True, help=f"COUNTxKIND, several with commas; kinds: {', '.join(KINDS)}.")
@click.option("--nodes", help=f"GPUs of each node, such as 8,8,5. Default: {PER_NODE} each.")
@click.option("--context", type=click.IntRange(16), help="Tokens of a sequence, a quarter answer. Default: 8192.")
@click.option("--tpot-ms", type=click.FloatRange(1), default=50.0, show_default=True, help="Most ms a token.")
@click.option("--price", type=click.FloatRange(0, min_open=True), help="Dollars per device hour, instead of ours.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(
    model: str, devices: str, nodes: str | None, context: int | None, tpot_ms: float, price: float | None, as_json: bool
) -> None:
    """Say how a model would run on devices that are not there.

    From its config.json alone: how it would be cut, what fits, how fast it would be, and why not otherwise. MODEL is a
    checkpoint directory, a config.json, a pulled model, or a built-in reference.

    \b
    Examples:
      argosy plan llama-3.1-70b --devices 8xH100
      argosy plan reference-1.8t --devices 64xH100 --context 16384
      argosy plan ./my-checkpoint --devices 8xH100,8xA100 --json
    """
    config = read_model(model)
    fleet = parse_fleet(devices, _sizes(nodes))
    tokens = min(context or 8192, config.context_length)
    if context and context > config.context_length:
        raise ConfigurationError(f"--context {context} is more than the model's {config.context_length}")
    workload = Workload(tokens - tokens // 4, tokens // 4, tpot_ms / 1e3)
    best, others = choose_plan(config, fleet, workload)
    if best is not None and price is not None:
        hours = sum(domain.size for domain in fleet) * price / 3600
        dollars = hours / best.tokens_per_second * 1e6
    else:
        dollars = best.dollars_per_million if best is not None else 0.0
    if as_json:
        click.echo(json.dumps(_as_dict(model, best, others, dollars), indent=2))
    elif best is not None:
        # Flash attention has neither sinks nor heads as wide as a latent.
        on_gpus = config.latent is None and not config.attention_sinks
        _print(model, fleet, workload, best, others, dollars, served_on_gpus=on_gpus)
    if best is None:
        raise ConfigurationError(f"{model} cannot be served by {devices}: {_nearest(others)}")


def _sizes(nodes: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in nodes.split(",")) if nodes else ()
    except ValueError:
        raise ConfigurationError(f"--nodes {nodes!r}: expected sizes with commas, such as 8,8,5") from None


def _nearest(others: Sequence[Rejected]) -> str:
    """The plan that uses the most devices says best what is missing."""
    if not others:
        return "no device"
    last = max(others, key=lambda other: (other.dims.world_size, other.dims.tp))
    return f"the nearest plan is {_shape(last.dims)}: {last.reason}; add devices, or take ones with more memory"


def _shape(dims: Any) -> str:
    return f"tensor {dims.tp} × pipeline {dims.pp}"


def _print(
    model: str,
    fleet: Sequence[LinkDomain],
    workload: Workload,
    best: CapacityPlan,
    others: Sequence[Rejected],
    dollars: float,
    *,
    served_on_gpus: bool,
) -> None:
    out = console()
    count = sum(domain.size for domain in fleet)
    out.print(f"{model} on {count} devices: {best.replicas} replica(s) of {_shape(best.dims)}\n")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("stage", "where", "layers"):
        table.add_column(name)
    for name in ("weights", "activations", "KV cache", "KV tokens"):
        table.add_column(name, justify="right")
    for index, stage in enumerate(best.stages):
        table.add_row(*_stage_cells(index, stage))
    out.print(table)
    out.print(f"Bytes are of a stage's fullest rank. One replica holds keys and values of {best.kv_tokens:,} tokens.\n")
    asked = f"prompts of {workload.prompt_tokens:,} tokens and answers of {workload.answer_tokens:,}"
    out.print(f"Predicted for {asked}, {best.batch} at once a replica:")
    out.print(f"  first token {best.ttft_seconds:.2f} s (idle), then {best.tpot_seconds * 1e3:.1f} ms a token (full)")
    out.print(f"  {best.tokens_per_second:,.0f} output tokens a second, {dollars:.2f} dollars per million\n")
    if not served_on_gpus:
        out.print("On paper only: this family's attention runs on CPU alone today.\n")
    out.print("Not chosen:")
    for other in others[:_SHOWN]:
        out.print(f"  {_shape(other.dims)}: {other.reason}")
    if len(others) > _SHOWN:
        out.print(f"  and {len(others) - _SHOWN} more (--json lists them)")


def _stage_cells(index: int, stage: StagePlan) -> list[str]:
    layers = stage.shard.layers
    sizes = (stage.weight_bytes, stage.activation_bytes, stage.kv_bytes)
    where = f"{stage.domain.name}, {stage.domain.kind.name}"
    return [
        str(index),
        where,
        f"{layers.start}-{layers.end - 1}",
        *(f"{size / 1e9:.1f} GB" for size in sizes),
        f"{stage.kv_tokens:,}",
    ]


def _as_dict(model: str, best: CapacityPlan | None, others: Sequence[Rejected], dollars: float) -> dict[str, Any]:
    return {
        "model": model,
        "chosen": None if best is None else _plan_dict(best) | {"dollars_per_million_output_tokens": dollars},
        "rejected": [
            {"tensor_parallel": other.dims.tp, "pipeline_parallel": other.dims.pp, "reason": other.reason}
            for other in others
        ],
        "references": sorted(REFERENCES),
    }


def _plan_dict(plan: CapacityPlan) -> dict[str, Any]:
    return {
        "tensor_parallel": plan.dims.tp,
        "pipeline_parallel": plan.dims.pp,
        "replicas": plan.replicas,
        "kv_tokens": plan.kv_tokens,
        "batch": plan.batch,
        "ttft_seconds": plan.ttft_seconds,
        "tpot_seconds": plan.tpot_seconds,
        "output_tokens_per_second": plan.tokens_per_second,
        "stages": [
            {
                "node": stage.domain.name,
                "device": stage.domain.kind.name,
                "start_layer": stage.shard.layers.start,
                "end_layer": stage.shard.layers.end,
                "weight_bytes": stage.weight_bytes,
                "activation_bytes": stage.activation_bytes,
                "kv_bytes": stage.kv_bytes,
                "kv_tokens": stage.kv_tokens,
            }
            for stage in plan.stages
        ],
    }
