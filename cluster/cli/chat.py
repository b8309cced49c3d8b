"""`argosy chat`: a conversation in the terminal, streamed. Knows what a person types and what was said so far."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import click
import grpc.aio

from argosy.v1 import inference_pb2, models_pb2
from cluster.cli.client import (
    AskOptions,
    ask,
    ask_options,
    assistant_message,
    find_model,
    open_channel,
    system_message,
    user_message,
)
from cluster.cli.terminal import printable

HELP = """/reset   forget the conversation
/system TEXT   start afresh with these instructions
/quit   end (so does Ctrl-D)
Ctrl-C   end the answer that is being written"""


@click.command("chat")
@ask_options
@click.option("--system", help="Instructions that the model gets before the conversation.")
def command(address: str, model: str | None, system: str | None, **options: Any) -> None:
    """Talk to a model in the terminal.

    Answers stream as they are made, and the model is given the whole conversation each time. Ctrl-C ends an answer, not
    the program; /quit or Ctrl-D ends the program; /help lists the rest.

    \b
    Examples:
      argosy chat
      argosy chat --temperature 0.7 --system "You are a patient teacher. Answer briefly."
      argosy chat --address 10.0.0.5:50051 --model smollm2-135m-instruct
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    with asyncio.Runner() as runner:
        router = runner.run(_open(address))
        try:
            served = runner.run(find_model(router, model, address))
            if not served.has_chat_template:
                raise click.ClickException(f"{served.name} has no chat template; use `argosy generate --raw`")
            _Conversation(runner, served, address, system, AskOptions(**options)).hold()
        finally:
            runner.run(router.close())


async def _open(address: str) -> grpc.aio.Channel:
    return open_channel(address)


class _Conversation:
    def __init__(
        self,
        runner: asyncio.Runner,
        model: models_pb2.Model,
        address: str,
        system: str | None,
        options: AskOptions,
    ) -> None:
        self._runner = runner
        self._model = model
        self._address = address
        self._options = options
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._messages: list[inference_pb2.ChatMessage] = []
        self._begin(system)

    def hold(self) -> None:
        """Read and answer until the person leaves."""
        if self._interactive:
            click.echo(f"{self._model.name}. /help lists the commands, /quit ends.")
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line:
                self._answer(line)

    def _begin(self, system: str | None) -> None:
        self._messages = [system_message(system)] if system else []

    def _read(self) -> str | None:
        """The next line; None at the end. Ctrl-C clears what was typed."""
        while True:
            try:
                return input("> " if self._interactive else "").strip()
            except EOFError:
                if self._interactive:
                    click.echo()
                return None
            except KeyboardInterrupt:
                click.echo("\n(/quit ends)")

    def _obey(self, line: str) -> bool:
        """Do what a /command says; False if the conversation is over."""
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self._begin(None)
        elif name == "/system":
            self._begin(rest.strip() or None)
        else:
            click.echo(HELP)
        return True

    def _answer(self, line: str) -> None:
        self._messages.append(user_message(line))
        said: list[str] = []
        try:
            self._runner.run(self._stream(said))
        except KeyboardInterrupt:
            click.echo(" (stopped)", nl=False)
        except click.ClickException as error:
            click.echo(f"argosy: {error.message}", err=True)
            if not self._interactive:
                raise
        click.echo()
        if said:
            self._messages.append(assistant_message("".join(said)))
        else:
            self._messages.pop()

    async def _stream(self, said: list[str]) -> None:
        """Write the answer as it comes; `said` holds what came, also if it is cut off."""
        request = self._options.request(self._model.name, inference_pb2.Chat(messages=self._messages))
        async for response in ask(request, self._options.timeout, self._address):
            if response.HasField("delta"):
                said.append(response.delta.text)
                sys.stdout.write(printable(response.delta.text))
                sys.stdout.flush()
