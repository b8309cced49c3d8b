"""Counting the tokens of a model's reasoning: marks of one token and of two, however the stream is cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.router.reasoning import ReasoningCounter, ReasoningMarks, find_marks

THINK = {"<think>": 1, "</think>": 2}
HARMONY = {"<|channel|>": 1, "analysis": 5, "<|end|>": 2, "<|return|>": 3}


def count(vocabulary: dict[str, int], prompt: Sequence[int], *parts: Sequence[int]) -> int:
    marks = find_marks(vocabulary.get)
    assert marks is not None
    counter = ReasoningCounter(marks, prompt)
    return sum(counter.count(part) for part in parts)


def test_a_vocabulary_without_marks_has_no_reasoning() -> None:
    assert find_marks({"<think>": 1}.get) is None
    assert find_marks({}.get) is None
    assert find_marks(THINK.get) == ReasoningMarks((1,), frozenset({2}))


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "answer", "expected"),
    [
        (THINK, [], [9, 1, 8, 8, 2, 9, 9], 4),
        (THINK, [], [9, 9], 0),
        (THINK, [7, 1], [8, 8, 2, 9], 3),  # the template has begun it
        (THINK, [1, 7, 2], [9, 1, 8], 2),  # cut off inside
        (THINK, [1, *[7] * 40], [9], 0),  # a user wrote the mark
        (HARMONY, [], [1, 5, 8, 2, 1, 6, 9, 3], 4),
        (HARMONY, [], [1, 1, 5, 8, 2], 4),
        (HARMONY, [], [5, 8, 2], 0),
    ],
)
def test_marks_and_what_lies_between_them_count(
    vocabulary: dict[str, int], prompt: list[int], answer: list[int], expected: int
) -> None:
    assert count(vocabulary, prompt, answer) == expected
    assert count(vocabulary, prompt, *([token] for token in answer)) == expected, "token by token"
