"""Text made piece by piece equals text made at once, and no part of a stop string is ever shown."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from cluster.router.detokenise import ByteDecoder, ChoiceText, StopStrings, WindowDecoder, decoder_factory

CORPUS = ["the quick brown fox", "schöne Grüße, 世界 🎉 naïve", "Stop! stop? STOP. \n\nUser: hello ###"] * 3


def byte_level() -> Tokenizer:
    """A small byte-level BPE with special and plain added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<plain token é>", special=False), AddedToken("<tool>", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A vocabulary in SentencePiece's manner: words with a lower bar, bytes for the rest."""
    words = ["▁", "▁the", "▁fox", "the", "fox", "s", "t", "o", "p", "é"]
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    vocabulary |= {word: 257 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
new_decoder = decoder_factory(BYTE_LEVEL)


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=60), st.integers(1, 7))
def test_byte_level_pieces_join_to_the_whole(token_ids: list[int], size: int) -> None:
    decoder = new_decoder([])
    assert isinstance(decoder, ByteDecoder)
    pieces = [decoder.push(token_ids[i : i + size]) for i in range(0, len(token_ids), size)]
    assert "".join(pieces) + decoder.flush() == BYTE_LEVEL.decode(token_ids)


@given(st.text(max_size=40))
def test_only_whole_characters_are_shown(text: str) -> None:
    decoder = new_decoder([])
    shown = ""
    for token_id in BYTE_LEVEL.encode(text).ids:
        shown += decoder.push((token_id,))
        assert text.startswith(shown)
    assert shown + decoder.flush() == text


def sentence(text: str) -> list[int]:
    """Byte-fallback tokens of a text: words where there are any, else bytes."""
    token_ids: list[int] = []
    for word in text.split(" "):
        known = BYTE_FALLBACK.token_to_id("▁" + word)
        token_ids += [known] if known else [BYTE_FALLBACK.token_to_id("▁"), *(byte + 1 for byte in word.encode())]
    return token_ids


@given(st.lists(st.sampled_from(["the", "fox", "日本", "🎉", "e\u0301", "x"]), min_size=1, max_size=12))
def test_windowed_pieces_join_to_the_whole(words: list[str]) -> None:
    token_ids = sentence(" ".join(words))
    decoder = decoder_factory(BYTE_FALLBACK)([])
    assert isinstance(decoder, WindowDecoder)
    shown = "".join(decoder.push((token_id,)) for token_id in token_ids) + decoder.flush()
    assert shown == BYTE_FALLBACK.decode(token_ids)
    assert "\ufffd" not in shown


def test_a_space_after_the_prompt_is_kept() -> None:
    prompt, answer = sentence("the fox"), sentence("the fox 🎉")
    decoder = decoder_factory(BYTE_FALLBACK)(prompt)
    assert "".join(decoder.push((token_id,)) for token_id in answer) == " the fox 🎉"


def test_bytes_that_never_become_a_character_are_not_held_for_ever() -> None:
    decoder = decoder_factory(BYTE_FALLBACK)([])
    shown = "".join(decoder.push((0xE6 + 1,)) for _ in range(40))
    assert shown.count("\ufffd") >= 36


@pytest.mark.model
def test_the_served_models_text_is_right(smollm2_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    rng = random.Random(3)
    new_decoder, vocabulary_size = decoder_factory(tokenizer), tokenizer.get_vocab_size()
    for _ in range(50):
        token_ids = [rng.randrange(vocabulary_size) for _ in range(200)]
        decoder = new_decoder([])
        assert "".join(decoder.push((t,)) for t in token_ids) + decoder.flush() == tokenizer.decode(token_ids)


def run(token_ids: Sequence[int], stops: Sequence[str], size: int, min_tokens: int = 0) -> tuple[str, str | None, int]:
    """Text, stop string and accepted tokens when tokens come `size` at a time."""
    text = ChoiceText(new_decoder([]), StopStrings(stops) if stops else None, min_tokens)
    shown, accepted = "", 0
    for start in range(0, len(token_ids), size):
        piece = text.push(token_ids[start : start + size])
        shown, accepted = shown + piece.text, accepted + piece.accepted
        if piece.stop_string is not None:
            return shown, piece.stop_string, accepted
    piece = text.finish()
    return shown + piece.text, piece.stop_string, accepted


def first_to_end(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """The oracle: (start, string) of the stop string that ends first, the longest of those."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return None
    end, _, stop = min(ends)
    return end - len(stop), stop


@given(
    st.text(alphabet="abé🎉", max_size=40),
    st.lists(st.text(alphabet="abé🎉", min_size=1, max_size=4), max_size=4),
    st.integers(1, 5),
)
def test_stop_strings_cut_the_text_wherever_it_is_split(text: str, stops: list[str], size: int) -> None:
    shown, stop, _ = run(BYTE_LEVEL.encode(text).ids, stops, size)
    expected = first_to_end(text, stops)
    if expected is None:
        assert (shown, stop) == (text, None)
    else:
        assert (shown, stop) == (text[: expected[0]], expected[1])


@given(
    st.text(alphabet="abc", max_size=40),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_no_part_of_a_stop_string_is_shown_before_it_is_decided(text: str, stops: list[str]) -> None:
    choice = ChoiceText(new_decoder([]), StopStrings(stops), 0)
    final = run(BYTE_LEVEL.encode(text).ids, stops, 1)[0]
    shown = ""
    for token_id in BYTE_LEVEL.encode(text).ids:
        piece = choice.push((token_id,))
        shown += piece.text
        assert final.startswith(shown)
        if piece.stop_string is not None:
            break


def test_tokens_after_a_stop_string_are_not_accepted() -> None:
    token_ids = [BYTE_LEVEL.token_to_id(letter) for letter in "xystopzzzz"]
    shown, stop, accepted = run(token_ids, ["stop"], size=10)
    assert (shown, stop, accepted) == ("xy", "stop", 6)


def test_stop_strings_wait_for_min_tokens() -> None:
    token_ids = [BYTE_LEVEL.token_to_id(letter) for letter in "ababab"]
    assert run(token_ids, ["ab"], 1) == ("", "ab", 2)
    assert run(token_ids, ["ab"], 1, min_tokens=3) == ("ab", "ab", 4)
    assert run(token_ids, ["ab"], 1, min_tokens=6) == ("ababab", None, 6)


def test_the_longer_of_two_that_end_together_wins() -> None:
    token_ids = [BYTE_LEVEL.token_to_id(letter) for letter in "xabc"]
    assert run(token_ids, ["bc", "abc", "c"], 1) == ("x", "abc", 4)
