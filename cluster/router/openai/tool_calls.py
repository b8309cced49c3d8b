"""Finds the calls of tools in what a model writes, as it is written. Knows text; no requests.

Read are Hermes' form, `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, anywhere in the answer (Qwen's models
and all that are told of tools in words write it), and an answer that is one such object and nothing else (Llama 3's
form, which says `parameters`). What turns out to be no call is text.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from cluster.router.conversation import CALL_CLOSES, CALL_OPENS


@dataclass(frozen=True, slots=True)
class Call:
    """One call."""

    name: str
    arguments: str
    """JSON text."""


@dataclass(frozen=True, slots=True)
class Found:
    """What more of an answer amounts to, in order: text first."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class CallFinder:
    """Reads one choice."""

    def __init__(self, names: Collection[str], *, must_call: bool = False) -> None:
        """
        Args:
            names: of the tools that may be called.
            must_call: the whole answer is constrained to one call.
        """
        self._names = names
        self._must_call = must_call
        self._held = ""
        self._is_inside = False
        self._is_bare = False
        self._has_begun = False

    def push(self, text: str) -> Found:
        """Take in more of the answer."""
        self._held += text
        if not self._has_begun and (start := self._held.lstrip()):
            self._has_begun = True
            self._is_bare = self._must_call or start[0] == "{"
        return Found() if self._is_bare or not self._has_begun else self._scan()

    def finish(self) -> Found:
        """The answer is over."""
        rest, self._held = self._held, ""
        call = self._parse(rest) if self._is_bare or self._is_inside else None
        if call is not None:
            return Found(calls=(call,))
        return Found(text=CALL_OPENS + rest if self._is_inside else rest)

    def _scan(self) -> Found:
        text, calls = "", []
        while True:
            mark = CALL_CLOSES if self._is_inside else CALL_OPENS
            before, found, after = self._held.partition(mark)
            if not found:
                break
            if not self._is_inside:
                text += before
            elif (call := self._parse(before)) is not None:
                calls.append(call)
            else:
                text += CALL_OPENS + before + CALL_CLOSES
            self._is_inside = not self._is_inside
            self._held = after
        if not self._is_inside:
            keep = _overlap(self._held, CALL_OPENS)
            text += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
        return Found(text, tuple(calls))

    def _parse(self, text: str) -> Call | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        return Call(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that `mark` begins with."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
