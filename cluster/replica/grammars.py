"""The grammars of one replica, compiled: probed first, then built in this process and kept for the next of the kind.

Knows the model's vocabulary; no requests, no steps.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Final

from llguidance import LLMatcher, LLTokenizer

from cluster.grammar.language import Grammar, GrammarError, TokenizerUnusableError, compile_grammar, load_tokenizer
from cluster.grammar.probe import GrammarProbe, ProbeBusyError
from cluster.replica.plan import Refused

MAX_COMPILED: Final = 64
"""Grammars kept; the limits of `cluster.grammar.language` bound each."""


class Grammars:
    """Compiles grammars off the event loop. Used from one event loop; `close` it at the end."""

    def __init__(self, directory: Path, vocab_size: int, end_token_ids: tuple[int, ...]) -> None:
        self._vocabulary = directory, vocab_size, end_token_ids
        self._probe = GrammarProbe(directory, vocab_size, end_token_ids)
        self._tokenizer: asyncio.Task[LLTokenizer] | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def warm_up(self) -> None:
        """Begin to read the vocabulary: it takes a moment, better now than in the middle of streams."""
        if self._tokenizer is None:
            self._tokenizer = asyncio.create_task(asyncio.to_thread(load_tokenizer, *self._vocabulary))

    async def matcher(self, grammar: Grammar) -> LLMatcher:
        """A matcher of one's own at the beginning of an answer.

        Raises:
            Refused: the grammar cannot be followed here.
        """
        try:
            compiled = self._compiled.get(grammar) or await self._compile(grammar)
        except GrammarError as error:
            raise Refused(f"grammar: {error}") from None
        except TokenizerUnusableError as error:
            raise Refused(f"grammar: this model follows none: {error}") from None
        except ProbeBusyError:
            raise Refused("grammar: no time to compile it now") from None
        self._compiled[grammar] = compiled
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return compiled.deep_copy()

    def close(self) -> None:
        """End the helper process."""
        if self._tokenizer is not None:
            self._tokenizer.cancel()
        self._probe.close()

    async def _compile(self, grammar: Grammar) -> LLMatcher:
        self.warm_up()
        assert self._tokenizer is not None
        tokenizer = await asyncio.shield(self._tokenizer)
        await self._probe.check(grammar)
        return await asyncio.to_thread(compile_grammar, tokenizer, grammar)
