"""`argosy demo`: a whole region for one question, with a table of the shards and of where the time went."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from argosy.internal.v1 import control_pb2
from argosy.v1 import inference_pb2
from cluster.cli.client import AskOptions, ask, find_model, open_channel, user_message
from cluster.cli.preflight import preflight
from cluster.cli.processes import process_age
from cluster.cli.progress import wait_until_ready
from cluster.cli.region import Region, StoppedError
from cluster.cli.terminal import console, printable
from cluster.config import ArgosyConfig, load_config

DEFAULT_FILE = Path(__file__).parents[2] / "examples" / "demo.yaml"

PHASES = ("starting", "importing", "loading", "warming")
"""Of a rank's start, in order."""


@dataclass(slots=True)
class _Answered:
    """What the one answer took. Seconds; ages count from the start of this process."""

    first_token_age: float = 0.0
    first_token_after: float = 0.0
    finished: inference_pb2.Finished | None = None
    decode_seconds: float = 0.0


@click.command("demo")
@click.argument("prompt")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, help="What to run. [examples/demo.yaml]"
)
@click.option("--model", help="Serve this pulled model instead of the file's first.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
def command(prompt: str, file: Path, model: str | None, max_tokens: int, temperature: float) -> None:
    """Start a small region, ask it one question, end it.

    The model is cut over four workers (2 tensor ranks × 2 pipeline stages) that Ray places, and asked through the gRPC
    router, on ports that are free. Nothing is left running.

    \b
    Examples:
      argosy demo "What is the capital of France? Answer in one sentence."
      argosy demo --max-tokens 40 "Write a line about the sea."
      argosy demo --model gemma3-270m "The capital of France is"
    """
    config = on_free_ports(load_config(file))
    if model is not None:
        first = config.models[0].model_copy(update={"name": model, "path": None})
        config = config.model_copy(update={"models": (first, *config.models[1:])})
    screen = console()
    plans = preflight(config)
    checked_age = process_age()
    try:
        with Region(config) as region:
            region.settle(plans, screen)
            region.start(screen)
            controller_age = process_age()
            status = wait_until_ready(region, console(stderr=True), attempts=1)
            ready_age = process_age()
            answered = _Answered()
            options = AskOptions(max_tokens=max_tokens, temperature=temperature)
            region.run(_ask(screen, config, prompt, options, answered))
            _report(screen, region, status, checked_age, controller_age, ready_age, answered)
    except StoppedError:
        click.get_current_context().exit(128 + region.stop_request.signal)


def on_free_ports(config: ArgosyConfig) -> ArgosyConfig:
    """The configuration with a router and a controller that meet nobody else's."""
    router, controller = _free_ports(2)
    return config.model_copy(
        update={
            "router": config.router.model_copy(update={"listen": f"127.0.0.1:{router}"}),
            "controller": config.controller.model_copy(update={"listen": f"127.0.0.1:{controller}"}),
        }
    )


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


async def _ask(screen: Console, config: ArgosyConfig, prompt: str, options: AskOptions, answered: _Answered) -> None:
    address = config.router.listen
    async with open_channel(address) as router:
        model = await find_model(router, config.models[0].name, address)
        source = inference_pb2.Chat(messages=[user_message(prompt)]) if model.has_chat_template else prompt
        screen.print(f"\n> {prompt}", markup=False)
        asked = time.monotonic()
        first = 0.0
        async for response in ask(options.request(model.name, source), options.timeout, address):
            if response.HasField("delta"):
                if not first and response.delta.token_ids:
                    first = time.monotonic()
                    answered.first_token_after = first - asked
                    answered.first_token_age = process_age()
                screen.file.write(printable(response.delta.text))
                screen.file.flush()
            elif response.HasField("finished"):
                answered.finished = response.finished
                answered.decode_seconds = time.monotonic() - first
        screen.print()


def _report(
    screen: Console,
    region: Region,
    status: control_pb2.GetStatusResponse,
    checked_age: float,
    controller_age: float,
    ready_age: float,
    answered: _Answered,
) -> None:
    ranks = [rank for replica in status.replicas for rank in replica.ranks]
    slowest = max(ranks, key=lambda rank: sum(rank.phase_seconds.values()))
    rows = [
        ("command line, checks and plan", checked_age),
        ("Ray", region.seconds["Ray"]),
        ("controller", region.seconds["controller"]),
        ("placement and ranks", ready_age - controller_age),
        ("    processes", ready_age - controller_age - sum(slowest.phase_seconds.values())),
        *(
            (f"    slowest rank: {name}", slowest.phase_seconds[name])
            for name in PHASES
            if name in slowest.phase_seconds
        ),
        ("first token, once asked", answered.first_token_after),
    ]
    table = Table(title="From process start to first token", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("where the time went")
    table.add_column("seconds", justify="right")
    for name, seconds in rows:
        table.add_row(name, f"{seconds:.2f}")
    table.add_section()
    table.add_row("total", f"{answered.first_token_age:.2f}")
    screen.print()
    screen.print(table)
    if answered.finished is not None:
        usage = answered.finished.usage
        rate = (usage.completion_tokens - 1) / answered.decode_seconds if usage.completion_tokens > 1 else 0.0
        screen.print(
            f"Time to first token {answered.first_token_after * 1000:.0f} ms for {usage.prompt_tokens} prompt tokens; "
            f"{usage.completion_tokens} tokens at {rate:.1f} tokens/s"
        )
