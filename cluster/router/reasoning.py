"""Which of an answer's tokens are the model's reasoning. Knows the marks that models set around it; no text.

Counted are the marks and what lies between them. Sources: the chat templates of Qwen3 and DeepSeek-V3.1 (`<think>`),
and of gpt-oss (the Harmony format's `analysis` channel).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PROMPT_TAIL = 16
"""A chat template that begins the reasoning itself does so within its last tokens."""

_KNOWN: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("<think>",), ("</think>",)),
    (("<|channel|>", "analysis"), ("<|end|>", "<|return|>", "<|call|>")),
)


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """Token ids around a model's reasoning."""

    opens: tuple[int, ...]
    """It begins with these, one after the other."""
    closes: frozenset[int]
    """Any of these ends it."""


def find_marks(token_id: Callable[[str], int | None]) -> ReasoningMarks | None:
    """The marks that a vocabulary has; None if its model does not reason aloud."""
    for opens, closes in _KNOWN:
        ids = [token_id(text) for text in opens]
        ends = frozenset(found for text in closes if (found := token_id(text)) is not None)
        if None not in ids and ends:
            return ReasoningMarks(tuple(found for found in ids if found is not None), ends)
    return None


class ReasoningCounter:
    """Follows one choice."""

    def __init__(self, marks: ReasoningMarks, prompt: Sequence[int]) -> None:
        self._marks = marks
        self._is_inside = False
        self._matched = 0
        """Of the opening mark, how much was seen last."""
        self.count(prompt[-PROMPT_TAIL:])

    def count(self, token_ids: Sequence[int]) -> int:
        """How many of the tokens that follow are reasoning. The mark that opens it counts once it is whole."""
        opens, closes = self._marks.opens, self._marks.closes
        num_tokens = 0
        for token_id in token_ids:
            if self._is_inside:
                num_tokens += 1
                self._is_inside = token_id not in closes
                continue
            self._matched = self._matched + 1 if token_id == opens[self._matched] else int(token_id == opens[0])
            if self._matched == len(opens):
                num_tokens += len(opens)
                self._is_inside, self._matched = True, 0
        return num_tokens
