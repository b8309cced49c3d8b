"""Renders a checkpoint's chat template in a sandbox with bounds on size, time and loops; knows no tokens.

The environment offers what checkpoints' templates expect (the names that transformers defines); rendering gives the
same text, which a test checks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_CHARACTERS = 16 * 1024 * 1024
"""Longest text that one rendering may make."""
MAX_SECONDS = 2.0
"""Longest time of one rendering, looked at whenever the template writes."""
MAX_ITERATIONS = 1_000_000
"""Most steps of all `range` loops of one rendering."""


class TemplateRefusedError(ValueError):
    """The template cannot render this conversation; the message is the template's own, or names the bound."""


class ChatTemplate:
    """A compiled template."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], now: Callable[[], datetime] = datetime.now
    ) -> None:
        """
        Args:
            source: Jinja text, from the checkpoint.
            special_tokens: `bos_token` and the like, by name.
            now: local time, for templates that print the date.

        Raises:
            jinja2.TemplateSyntaxError: the source is not a template.
        """
        self._special_tokens = dict(special_tokens)
        environment = _environment(now)
        self.knows_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        """Whether the template does anything with tools."""
        self._template = environment.from_string(source)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The text that the model continues.

        Args:
            messages: each with `role` and `content`.
            tools: functions that the model may call, in JSON Schema.

        Raises:
            TemplateRefusedError: the template refuses the conversation, or a bound was met.
        """
        budget = _LoopBudget()
        variables: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": True,
            "range": budget.range,
            **self._special_tokens,
        }
        give_up = time.monotonic() + MAX_SECONDS
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_CHARACTERS:
                    raise TemplateRefusedError(f"the template writes more than {MAX_CHARACTERS} characters")
                if time.monotonic() > give_up:
                    raise TemplateRefusedError(f"the template takes longer than {MAX_SECONDS} s")
        except jinja2.TemplateError as error:
            raise TemplateRefusedError(error.message or "the template refuses it") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            if isinstance(error, TemplateRefusedError):
                raise
            raise TemplateRefusedError(f"the template fails with {type(error).__name__}") from None
        return "".join(pieces)


class _LoopBudget:
    """Counts the steps of `range` over a whole rendering: the sandbox's own limit is on one call alone."""

    def __init__(self) -> None:
        self._left = MAX_ITERATIONS

    def range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._left -= len(numbers)
        if self._left < 0:
            raise SecurityError(f"the template loops more than {MAX_ITERATIONS} times")
        return numbers


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a bound on what one operator can build (`"a" * 10**9` never reaches a loop)."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if abs(right) > 64:
                raise SecurityError("the template's exponent is too large")
        else:
            for value, count in ((left, right), (right, left)):
                if isinstance(value, Sized) and isinstance(count, int) and len(value) * count > MAX_CHARACTERS:
                    raise SecurityError("the template repeats a value too often")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; for serving it is its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace without underscored attributes, which would reach Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"attribute {name!r} begins with an underscore")
        super().__setitem__(name, value)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
