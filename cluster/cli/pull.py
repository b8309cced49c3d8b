"""`argosy pull`: the model store's command line. Knows how to show progress; the store does the work."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.terminal import ProgressLine
from cluster.config import default_store, load_config
from cluster.errors import ConfigurationError
from model.weights.catalogue import CATALOGUE
from model.weights.safety import StoreError
from model.weights.store import pull


@click.command("pull", epilog=f"Models known by name: {', '.join(CATALOGUE)}.")
@click.argument("source", metavar="NAME|PATH|HUB_ID", required=False)
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    help="Pull every model of this YAML file that has no path.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="the file's model_store, else $ARGOSY_HOME/models or ~/.cache/argosy/models",
    help="Where models are kept.",
)
def command(source: str | None, file: Path | None, store: Path | None) -> None:
    """Bring a model into the store, ready to be served.

    Only safetensors weights are taken. Pickled weights and models that need code of their own are refused: both can
    run code on your machines. Pulling what is already there costs nothing; an interrupted pull is continued or starts
    afresh.

    \b
    Examples:
      argosy pull smollm2-135m-instruct       a model that Argosy knows (gemma3-270m is another)
      argosy pull ./my-checkpoint             a directory: config.json, tokenizer.json, *.safetensors
      argosy pull ORGANISATION/NAME           from a model hub
      argosy pull -f argosy.yaml              what a region serves
    """
    if source is not None and file is None:
        _pull(source, store or default_store())
    elif source is None and file is not None:
        config = load_config(file)
        for name in [model.name for model in config.models if model.path is None]:
            _pull(name, store or config.model_store)
    else:
        raise click.UsageError("name a model, or a region's file with -f")


def _pull(source: str, store: Path) -> None:
    """Pull one model, show how far it is, and print its directory.

    Raises:
        ConfigurationError: it cannot be had.
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
