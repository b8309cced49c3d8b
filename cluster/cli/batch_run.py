"""A batch from its first line to its last: a region of its own for as long as it takes. Knows no Ray jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cluster.batch.answers import AnswerFile
from cluster.batch.run import Batch, Tally, count_lines, work_through
from cluster.cli.client import open_channel
from cluster.cli.demo import on_free_ports
from cluster.cli.preflight import preflight
from cluster.cli.progress import wait_until_ready
from cluster.cli.region import Region
from cluster.cli.terminal import ProgressLine, console
from cluster.config import ArgosyConfig
from cluster.errors import ConfigurationError

REPORT_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""
TERMINAL_REPORT_SECONDS = 0.2
QUEUED = 1.5
"""Prompts in flight for each place in the replicas' batches: the next one is there when a place falls free."""


def run_batch(config: ArgosyConfig, source: Path, out: Path, model: str | None, concurrency: int | None) -> Tally:
    """Answer what `out` does not hold yet.

    Raises:
        ConfigurationError: something cannot be used; names it.
        StoppedError: a signal came; what is in `out` counts.
    """
    name = _model(config, model)
    config = _private(config)
    total = count_lines(source)
    with AnswerFile(out) as answers:
        tally = Tally(total, resumed=len(answers.done))
        screen = console(stderr=True)
        if tally.resumed:
            screen.print(f"{out} holds {tally.resumed} lines already", markup=False)
        if tally.left <= 0:
            return tally
        in_flight = concurrency or _concurrency(config)
        streams = max(in_flight, config.router.max_streams)
        config = config.model_copy(update={"router": config.router.model_copy(update={"max_streams": streams})})
        plans = preflight(config)
        with Region(config) as region:
            region.settle(plans, screen)
            region.start(screen)
            wait_until_ready(region, screen, attempts=2)
            tally.began = time.monotonic()
            line = ProgressLine()
            try:
                region.run(_work(config, Batch(source, name, in_flight), answers, tally, _reporter(line)))
            finally:
                line.close()
    return tally


async def _work(
    config: ArgosyConfig, batch: Batch, answers: AnswerFile, tally: Tally, progress: Callable[[Tally], None]
) -> None:
    async with open_channel(config.router.listen) as router:
        await work_through(batch, router, answers, tally, progress)


def _reporter(line: ProgressLine) -> Callable[[Tally], None]:
    """Shows a tally, but not more often than somebody can read."""
    every = TERMINAL_REPORT_SECONDS if line.is_terminal else REPORT_SECONDS
    last = 0.0

    def report(tally: Tally) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every or not tally.left:
            last = now
            line.report(tally.line(now), (tally.resumed + tally.done) / tally.total)

    return report


def _private(config: ArgosyConfig) -> ArgosyConfig:
    """The configuration with a router for this process alone: on loopback, where nobody is asked who they are."""
    router = config.router.model_copy(update={"tls": None, "reflection": False})
    identity = config.identity.model_copy(update={"mode": "anonymous"})
    return on_free_ports(config.model_copy(update={"router": router, "identity": identity}))


def _model(config: ArgosyConfig, name: str | None) -> str:
    names = [model.name for model in config.models]
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        # Lines may still name their own; those that do not are refused one by one.
        return ""
    if name not in names:
        raise ConfigurationError(f"--model: {name!r} is not in the configuration, which has {', '.join(names)}")
    return name


def _concurrency(config: ArgosyConfig) -> int:
    return max(1, int(QUEUED * sum(model.replicas * model.engine.max_sequences for model in config.models)))
