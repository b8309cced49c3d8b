"""Token ids to text, piece by piece: whole characters only, stop strings never shown. Knows no requests and no network.

A token costs the same however long the answer already is. The text is that of decoding all tokens at once, special
tokens left out: a test compares them.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer, decoders

MAX_HELD_TOKENS = 4
"""A character has at most four bytes, so text that still looks cut after four tokens is not cut but invalid."""
CONTEXT_TOKENS = 6
"""Prompt tokens that a windowed decoder starts from, so that the answer's first space is not lost."""


class Decoder(Protocol):
    """Turns one choice's tokens into text."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The characters that these tokens complete."""

    def flush(self) -> str:
        """What was held back, with U+FFFD for each cut character."""


class DecoderFactory(Protocol):
    """Makes decoders for one tokenizer."""

    def __call__(self, prompt: Sequence[int]) -> Decoder: ...


def decoder_factory(tokenizer: Tokenizer) -> DecoderFactory:
    """The fastest factory that is right for the tokenizer: a table of bytes for byte-level ones, else a window."""
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        table = _byte_table(tokenizer)
        return lambda prompt: ByteDecoder(table)
    return lambda prompt: WindowDecoder(tokenizer, prompt)


class ByteDecoder:
    """For byte-level vocabularies: each token is a fixed string of bytes."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        table = self._table
        return self._utf8.decode(b"".join([table[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDecoder:
    """For any other vocabulary: decodes the few latest tokens with and without the new one, and shows what it adds."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt[-CONTEXT_TOKENS:])
        self._context_text = tokenizer.decode(self._context)
        self._held: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def flush(self) -> str:
        return self._show() if self._held else ""

    def _push_one(self, token_id: int) -> str:
        self._held.append(token_id)
        text = self._tokenizer.decode(self._context + self._held)
        if text.endswith("\ufffd") and len(self._held) < MAX_HELD_TOKENS:
            return ""
        return self._show(text)

    def _show(self, text: str | None = None) -> str:
        if text is None:
            text = self._tokenizer.decode(self._context + self._held)
        new = text[len(self._context_text) :]
        if new:
            # Only tokens that showed something can be the context of the next: special tokens decode to nothing.
            self._context = self._held
            self._context_text = self._tokenizer.decode(self._context)
        self._held = []
        return new


def _byte_table(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token id; special tokens and ids without a token have none."""
    byte_of = {character: byte for byte, character in _byte_characters().items()}
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        if token_id not in special:
            try:
                table[token_id] = bytes([byte_of[character] for character in token])
            except KeyError:
                # An added token is plain text and may hold characters outside the alphabet, such as a space.
                table[token_id] = token.encode()
    return table


def _byte_characters() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's encoder: printable Latin-1 stays)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


class StopStrings:
    """Finds the first place where any of some strings ends, one character at a time (Aho and Corasick, 1975).

    Which string ends first does not depend on how the text was cut into pieces. Of two that end together the longer
    wins, so that no part of it is shown.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]
        for string in strings:
            self._add(string)
        self._fail = [0] * len(self._next)
        self._link()

    def _add(self, string: str) -> None:
        node = 0
        for character in string:
            if character not in self._next[node]:
                self._next[node][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._match.append(None)
            node = self._next[node][character]
        self._match[node] = string

    def _link(self) -> None:
        """Point each node to the longest proper suffix of its string that is a node too, breadth first."""
        level = list(self._next[0].values())
        while level:
            below = []
            for node in level:
                for character, child in self._next[node].items():
                    self._fail[child] = self.step(self._fail[node], character)
                    self._match[child] = self._match[child] or self._match[self._fail[child]]
                    below.append(child)
            level = below

    def step(self, node: int, character: str) -> int:
        """The node after one more character."""
        while node and character not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(character, 0)

    def held(self, node: int) -> int:
        """How many of the latest characters may be the beginning of a stop string."""
        return self._depth[node]

    def match(self, node: int) -> str | None:
        """The stop string that ends here."""
        return self._match[node]


@dataclass(frozen=True, slots=True)
class Piece:
    """What some tokens added to a choice."""

    text: str
    accepted: int
    """Tokens that belong to the answer: fewer than given if a stop string ended it."""
    stop_string: str | None = None


class ChoiceText:
    """The text of one choice."""

    def __init__(self, decoder: Decoder, stops: StopStrings | None, min_tokens: int) -> None:
        """
        Args:
            stops: strings that end the choice; None if there are none.
            min_tokens: stop strings are looked for from this many tokens on.
        """
        self._decoder = decoder
        self._stops = stops
        self._tokens_before_stops = min_tokens - 1
        self._node = 0
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Add tokens. After a piece with a stop string the choice is over."""
        if self._stops is None:
            return Piece(self._decoder.push(token_ids), len(token_ids))
        shown = []
        for index, token_id in enumerate(token_ids):
            text = self._decoder.push((token_id,))
            if self._tokens_before_stops > 0:
                self._tokens_before_stops -= 1
                shown.append(text)
                continue
            text, stop_string = self._search(self._stops, text)
            shown.append(text)
            if stop_string is not None:
                return Piece("".join(shown), index + 1, stop_string)
        return Piece("".join(shown), len(token_ids))

    def finish(self) -> Piece:
        """Everything held back, once the choice has ended for another reason."""
        text = self._decoder.flush()
        if self._stops is None:
            return Piece(text, 0)
        text, stop_string = self._search(self._stops, text)
        if stop_string is None:
            text, self._held = text + self._held, ""
        return Piece(text, 0, stop_string)

    def _search(self, stops: StopStrings, text: str) -> tuple[str, str | None]:
        """Split held and new text into what may be shown and what must wait; drops both from a stop string on."""
        node = self._node
        for index, character in enumerate(text):
            node = stops.step(node, character)
            if (found := stops.match(node)) is not None:
                before = self._held + text[: index + 1]
                self._held = ""
                return before[: len(before) - len(found)], found
        self._node = node
        text = self._held + text
        cut = len(text) - stops.held(node)
        self._held = text[cut:]
        return text[:cut], None
