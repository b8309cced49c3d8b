"""The `argosy` command. One module a subcommand, imported when it runs: `--help` must not wait for gRPC or Ray."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from cluster.errors import ConfigurationError

SUBCOMMANDS = {
    "pull": "Bring a model into the store, ready to be served.",
    "up": "Start everything that a YAML file describes; Ctrl-C ends it.",
    "submit": "Run a region, or a batch of prompts, as a Ray job; or a batch here.",
    "demo": "Start a small region, ask it one question, end it.",
    "generate": "Ask a model once and stream the answer.",
    "chat": "Talk to a model in the terminal.",
    "status": "Show replicas and ranks, and how they do.",
    "top": "Watch regions, replicas and ranks as they work.",
    "apply": "Make a running region what a file says: replicas, shapes, models.",
    "drain": "End a replica, the replicas of a node, or a router, in order.",
    "logs": "Show the logs of all processes, or follow one request through them.",
    "health": "Ask a router whether it serves, for probes and scripts.",
    "login": "Log in with an identity provider, in a browser on any device.",
    "tenants": "Show and set tenants: who may use the service, and how much.",
    "keys": "Make, show, rotate and revoke API keys.",
    "usage": "Show what was used: tokens by tenant and model, or one request.",
    "certificates": "Make certificates for mutual TLS between Argosy's own processes.",
    "router": "Run one more router for a region that is up.",
    "plan": "Say how a model would run on devices that are not there.",
    "simulate": "Replay a published trace on a simulated fleet of three regions; young, see docs/scheduling.md.",
}


class _Lazy(click.Group):
    """Knows the subcommands' names and one line about each without importing them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in SUBCOMMANDS:
            return None
        command: click.Command = importlib.import_module(f"cluster.cli.{name}").command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in SUBCOMMANDS and not args[0].startswith("-"):
            context.fail(f"no command {args[0]!r}; the commands are {', '.join(SUBCOMMANDS)}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="argosy", prog_name="argosy")
def argosy() -> None:
    """Serve large transformers from many devices, and ask them.

    \b
    First steps:
      argosy pull smollm2-135m-instruct       a small real model, 93 MB to download
      argosy up -f examples/argosy.yaml       serve it; stays until Ctrl-C
      argosy chat                             in another terminal
    """


def main() -> None:
    """Entry point of the console script. A user's mistake ends in one line on stderr and exit status 1."""
    try:
        status = argosy(prog_name="argosy", standalone_mode=False)
    except ConfigurationError as error:
        _fail(str(error), 1)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(line: str, status: int) -> NoReturn:
    click.echo(f"argosy: {line}", err=True)
    sys.exit(status)
