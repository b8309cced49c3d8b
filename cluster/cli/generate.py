"""`argosy generate`: one prompt, one streamed answer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, TextIO

import click

from argosy.v1 import inference_pb2
from cluster.cli.client import AskOptions, ask, ask_options, find_model, open_channel, system_message, user_message
from cluster.cli.terminal import printable

_TEXT_FILE = click.File(encoding="utf-8")


@click.command("generate")
@click.argument("prompt", required=False)
@ask_options
@click.option("--system", help="Instructions that the model gets before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the model's chat template.")
@click.option("--json-schema", type=_TEXT_FILE, help="File with a JSON Schema: the answer is JSON that fits it.")
@click.option("--regex", help="Regular expression that the whole answer matches.")
@click.option("--grammar", type=_TEXT_FILE, help="File with a grammar in Lark notation that derives the whole answer.")
@click.option("--stats", is_flag=True, help="Say on stderr how many tokens it took, and how long.")
def command(
    prompt: str | None,
    address: str,
    model: str | None,
    system: str | None,
    raw: bool,
    json_schema: TextIO | None,
    regex: str | None,
    grammar: TextIO | None,
    stats: bool,
    **options: Any,
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
      argosy generate --regex "(red|green|blue)" "Which colour is the sky?"
      argosy generate --json-schema person.json "Invent a person."
    """
    if prompt is None:
        if sys.stdin.isatty():
            raise click.UsageError("give a PROMPT, or pipe one in")
        prompt = sys.stdin.read()
    if raw and system:
        raise click.UsageError("--system needs the chat template, which --raw leaves out")
    shape = response_format(json_schema, regex, grammar)
    asyncio.run(_generate(prompt, address, model, system, raw, stats, AskOptions(**options, response_format=shape)))


def response_format(
    json_schema: TextIO | None, regex: str | None, grammar: TextIO | None
) -> inference_pb2.ResponseFormat | None:
    """The format that the options ask for, if any.

    Raises:
        click.UsageError: they ask for several.
    """
    given = {
        "json_schema": json_schema.read() if json_schema else None,
        "regex": regex,
        "grammar": grammar.read() if grammar else None,
    }
    texts = {name: text for name, text in given.items() if text is not None}
    if len(texts) > 1:
        raise click.UsageError("--json-schema, --regex and --grammar exclude each other")
    return inference_pb2.ResponseFormat(**texts) if texts else None


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
        async for response in ask(options.request(model.name, source), options.timeout, address):
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
