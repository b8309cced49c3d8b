"""`argosy generate`: one prompt, one streamed answer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from argosy.v1 import inference_pb2
from cluster.cli.client import AskOptions, ask, ask_options, find_model, open_channel, system_message, user_message
from cluster.cli.terminal import printable


@click.command("generate")
@click.argument("prompt", required=False)
@ask_options
@click.option("--system", help="Instructions that the model gets before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the model's chat template.")
@click.option("--stats", is_flag=True, help="Say on stderr how many tokens it took, and how long.")
def command(
    prompt: str | None, address: str, model: str | None, system: str | None, raw: bool, stats: bool, **options: Any
) -> None:
    """Ask a model once and stream the answer.

    Without PROMPT, the prompt is read from standard input. A model with a chat template gets the prompt as a user's
    message; --raw makes it continue the bare text.

    \b
    Examples:
      argosy generate "Why is the sky blue?"
      argosy generate --temperature 0 --max-tokens 40 "Name three rivers."
      git diff | argosy generate --system "Summarise this change in one line."
      argosy generate --raw "Once upon a time"
    """
    if prompt is None:
        if sys.stdin.isatty():
            raise click.UsageError("give a PROMPT, or pipe one in")
        prompt = sys.stdin.read()
    if raw and system:
        raise click.UsageError("--system needs the chat template, which --raw leaves out")
    asyncio.run(_generate(prompt, address, model, system, raw, stats, AskOptions(**options)))


async def _generate(
    prompt: str, address: str, name: str | None, system: str | None, raw: bool, stats: bool, options: AskOptions
) -> None:
    async with open_channel(address) as router:
        model = await find_model(router, name, address)
        source: str | inference_pb2.Chat = prompt
        if model.has_chat_template and not raw:
            messages = [system_message(system)] if system else []
            source = inference_pb2.Chat(messages=[*messages, user_message(prompt)])
        elif system:
            raise click.UsageError(f"{model.name} has no chat template, so it takes no --system")
        terminal = sys.stdout.isatty()
        async for response in ask(router, options.request(model.name, source), options.timeout, address):
            if response.HasField("delta"):
                text = response.delta.text
                sys.stdout.write(printable(text) if terminal else text)
                sys.stdout.flush()
            elif response.HasField("finished"):
                sys.stdout.write("\n")
                sys.stdout.flush()
                if stats:
                    click.echo(summary(response.finished), err=True)


def summary(finished: inference_pb2.Finished) -> str:
    """One line of figures about a finished answer."""
    usage, timing = finished.usage, finished.timing
    first = timing.time_to_first_token.ToNanoseconds() / 1e9
    total = timing.total.ToNanoseconds() / 1e9
    decoding = total - first
    rate = f", {(usage.completion_tokens - 1) / decoding:.1f} tokens/s" if decoding > 0 else ""
    cached = f" ({usage.cached_prompt_tokens} cached)" if usage.cached_prompt_tokens else ""
    return (
        f"{usage.prompt_tokens} prompt tokens{cached}, {usage.completion_tokens} generated; "
        f"first token after {first * 1000:.0f} ms{rate}"
    )
