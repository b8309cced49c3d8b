"""`argosy pull`: the model store's command line. Knows how to show progress; the store does the work."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.terminal import ProgressLine
from cluster.config import default_store
from cluster.errors import ConfigurationError
from model.weights.catalogue import CATALOGUE
from model.weights.safety import StoreError
from model.weights.store import pull


@click.command("pull", epilog=f"Models known by name: {', '.join(CATALOGUE)}.")
@click.argument("source", metavar="NAME|PATH|HUB_ID")
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_store,
    show_default="$ARGOSY_HOME/models or ~/.cache/argosy/models",
    help="Where models are kept.",
)
def command(source: str, store: Path) -> None:
    """Bring a model into the store, ready to be served.

    Only safetensors weights are taken. Pickled weights and models that need code of their own are refused: both can
    run code on your machines. Pulling what is already there costs nothing; an interrupted pull is continued or starts
    afresh.

    \b
    Examples:
      argosy pull smollm2-135m-instruct       a model that Argosy knows (gemma3-270m is another)
      argosy pull ./my-checkpoint             a directory: config.json, tokenizer.json, *.safetensors
      argosy pull ORGANISATION/NAME           from a model hub
    """
    if (known := CATALOGUE.get(source)) is not None:
        click.echo(f"{known.summary}; license: {known.license}", err=True)
    line = ProgressLine()
    try:
        directory = pull(source, store, line.report)
    except StoreError as error:
        raise ConfigurationError(str(error)) from None
    finally:
        line.close()
    click.echo(str(directory))
