"""What a grammar is and how it becomes a matcher over a model's tokens. Knows llguidance; no requests, no processes.

Compiling stranger's text may take long or much memory in spite of the limits here, so it is tried first in a process
that can be killed: `cluster.grammar.probe`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

Kind = Literal["json_schema", "regex", "lark"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

MAX_GRAMMAR_BYTES: Final = 65_536
"""Longest text of a grammar, in UTF-8."""
MAX_MESSAGE_CHARACTERS: Final = 240

_NO_ANSWER: Final = "NoExtension"
"""How the library says so."""
_JSON_OPTIONS: Final = {
    # Without a bound, a model that is unsure what comes next writes blanks until max_tokens.
    "whitespace_flexible": True,
    "whitespace_pattern": r"[\x20\x0A]{1,8}",
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    # What the library cannot enforce is refused, not ignored.
    "lenient": False,
}


class Grammar(NamedTuple):
    """A constraint on a whole answer."""

    kind: Kind
    text: str


class GrammarError(ValueError):
    """The grammar cannot be used; the text says why in one line that may be shown to whoever wrote it."""


class TokenizerUnusableError(Exception):
    """No grammar can be followed in this model's vocabulary; the text says why."""


def load_tokenizer(directory: Path, vocab_size: int, end_token_ids: tuple[int, ...]) -> LLTokenizer:
    """The vocabulary of a checkpoint as matchers need it; takes about 0.3 s.

    Args:
        vocab_size: number of logits, padding included; masks have as many bits.
        end_token_ids: what a finished answer may go on with.

    Raises:
        TokenizerUnusableError: there is no such file, or it is not of a kind that can be used.
    """
    path = directory / "tokenizer.json"
    if not end_token_ids:
        raise TokenizerUnusableError("the model has no end-of-text token")
    try:
        return LLTokenizer(path.read_text(), n_vocab=vocab_size, eos_token=list(end_token_ids))
    except FileNotFoundError:
        raise TokenizerUnusableError("there is no tokenizer.json") from None
    except Exception as error:  # the library names no exceptions of its own
        raise TokenizerUnusableError(f"tokenizer.json cannot be used: {error}") from None


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at the beginning of an answer.

    Raises:
        GrammarError: the text is no grammar, derives nothing, or needs more than the limits allow.
    """
    try:
        source = _source(grammar)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"is not valid JSON: {one_line(str(error))}") from None
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=_limits())
    if matcher.is_error():
        raise GrammarError(_reason(grammar, matcher))
    # That a grammar derives nothing, or is too wide at once, shows only when the first token is asked for.
    if not any(matcher.compute_bitmask()) or matcher.is_error():
        reason = _reason(grammar, matcher)
        raise GrammarError("allows no answer" if reason.startswith(_NO_ANSWER) or not reason else reason)
    return matcher


def one_line(text: str) -> str:
    """A library's message without line breaks, control characters or more than a line's length."""
    flat = "".join(character if character.isprintable() else " " for character in text)
    flat = " ".join(flat.split())
    return flat if len(flat) <= MAX_MESSAGE_CHARACTERS else flat[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def _source(grammar: Grammar) -> str:
    """The library's own notation. Text is always embedded as data: it must not add options or grammars of its own."""
    if grammar.kind == "json_schema":
        schema = json.loads(grammar.text)
        if not isinstance(schema, dict):
            raise ValueError("a schema is an object")
        return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    return json.dumps({"grammars": [{"lark_grammar": grammar.text}]})


def _limits() -> LLParserLimits:
    """A fraction of the library's defaults: they bound what one token may cost, and what one answer may hold.

    Fifty schemas, objects of 500 fields and grammars of languages took at most 0.7 ms a token with them, hostile
    grammars some 10 ms.
    """
    return LLParserLimits(
        max_items_in_row=1000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=50_000,
        step_max_items=5_000,
        max_lexer_states=40_000,
        max_grammar_size=250_000,
        verbose_errors=False,
    )


def _reason(grammar: Grammar, matcher: LLMatcher) -> str:
    """The library's message, less its drawings of the place and what it wraps around a regex."""
    text = matcher.get_error().removesuffix("<non-verbose/>").strip()
    first, _, rest = text.partition("\n")
    details = re.search(r"^error: (.*)$", rest, re.MULTILINE)
    if details is None:
        return one_line(first)
    if grammar.kind == "regex":
        return one_line(details[1])
    return one_line(f"{first} {details[1]}")
