"""`argosy router`: one router process. Knows how to end with its parent; the rest is the router's business."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import click

from cluster.config import load_config
from cluster.logs import configure_logging

ORPHAN_GRACE_SECONDS = 3.0


@click.command("router")
@click.option(
    "-f", "--file", "--config", type=click.Path(path_type=Path), required=True, help="The region's YAML file."
)
@click.option("--listen", help="host:port to listen on instead of the file's router.listen.")
@click.option("--exit-with-parent", is_flag=True, help="End when standard input closes, as it does when a parent dies.")
def command(file: Path, listen: str | None, exit_with_parent: bool) -> None:
    """Run one more router for a region that is up.

    `argosy up` starts one by itself. A router holds no model and needs no GPU; clients may call any of them.

    \b
    Example:
      argosy router -f argosy.yaml --listen 0.0.0.0:50061
    """
    config = load_config(file)
    if listen is not None:
        section = config.router.model_validate({**config.router.model_dump(), "listen": listen})
        config = config.model_copy(update={"router": section})
    if exit_with_parent:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    from cluster.router.main import run

    configure_logging(role="router")
    run(config)


def _end_with_parent() -> None:
    """Wait for the end of standard input: a pipe that nobody writes to, which closes when the parent is gone."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # The replicas are going with the same parent: streams that have not ended by now never will.
    time.sleep(ORPHAN_GRACE_SECONDS)
    os._exit(1)
