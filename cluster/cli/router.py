"""`argosy router`: one router process. Knows how to end with its parent; the rest is the router's business."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.processes import end_with_parent
from cluster.config import ArgosyConfig, load_config, parse_config
from cluster.logs import configure_logging


@click.command("router")
@click.option(
    "-f", "--file", "--config", type=click.Path(path_type=Path), required=True, help="The region's YAML file."
)
@click.option("--listen", help="host:port to listen on instead of the file's router.listen.")
@click.option("--controller", help="host:port of the region's controller instead of the file's controller.listen.")
@click.option("--exit-with-parent", is_flag=True, help="End when standard input closes, as it does when a parent dies.")
def command(file: Path, listen: str | None, controller: str | None, exit_with_parent: bool) -> None:
    """Run one more router for a region that is up.

    `argosy up` starts one by itself. A router holds no model and needs no GPU; clients may call any of them.

    \b
    Examples:
      argosy router -f argosy.yaml --listen 127.0.0.1:50061
      argosy router -f argosy.yaml --listen 0.0.0.0:50051 --controller 10.0.0.1:50052    on a machine of its own
    """
    config = load_config(file)
    if listen is not None:
        config = _at(config, "router", listen)
    if controller is not None:
        config = _at(config, "controller", controller)
    if exit_with_parent:
        end_with_parent()
    from cluster.router.main import run

    configure_logging(config.log, role="router", region=config.region)
    run(config)


def _at(config: ArgosyConfig, section: str, address: str) -> ArgosyConfig:
    """The configuration with another address in one section.

    Raises:
        ConfigurationError: it is none.
    """
    return parse_config({**config.model_dump(), section: {**getattr(config, section).model_dump(), "listen": address}})
