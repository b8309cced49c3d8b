"""Makes tokenizer.json and its settings from a GGUF file's metadata. Knows vocabularies, no weights.

Two kinds: byte-level BPE with its merges (`gpt2`), and SentencePiece's BPE (`llama`), whose merges follow from its
vocabulary. Only Gemma's manner of the latter is made: no prefix space, tokens in the order in which they merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model.weights.gguf_families import ConversionError, Fields

_CONTROL, _USER_DEFINED, _NORMAL = (
    int(kind) for kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.NORMAL)
)
_SPACE = "\u2581"
"""What SentencePiece writes for a space."""


def make_tokenizer(fields: Fields) -> Tokenizer:
    """The tokenizer that the file describes.

    Raises:
        ConversionError: it is of another kind.
    """
    model, splitting = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if model == "gpt2" and splitting in ("smollm", "gpt-2"):
        tokenizer = _byte_level(fields, splitting)
    elif model == "llama" and fields.get("general.architecture") == "gemma3":
        tokenizer = _gemma(fields)
    else:
        raise ConversionError(f"tokenizer.ggml.model {model!r} with tokenizer.ggml.pre {splitting!r} is not converted")
    tokenizer.add_special_tokens([_added(token, special=True) for token in _of_kind(fields, _CONTROL)])
    return tokenizer


def tokenizer_settings(fields: Fields, context_length: int) -> dict[str, Any]:
    """What tokenizer_config.json holds."""
    tokens = fields["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        **{name: tokens[token_id] for name, token_id in ids.items() if token_id is not None},
    }


def _byte_level(fields: Fields, splitting: str) -> Tokenizer:
    """GGUF only names the splitting rule, so the rules themselves stand here."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix", False)))
    digit_by_digit = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digit_by_digit, by_bytes]) if splitting == "smollm" else by_bytes
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gemma(fields: Fields) -> Tokenizer:
    """BPE over whole lines, spaces written as bars, unknown characters as bytes.

    GGUF spells runs of spaces as spaces; the text that they are looked up in has bars by then.
    """
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        raise ConversionError("tokenizer.ggml.add_space_prefix: a space before every text is not converted")
    tokens = [token if token.strip(" ") else _SPACE * len(token) for token in fields["tokenizer.ggml.tokens"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    kinds = fields["tokenizer.ggml.token_type"]
    mergeable = {token: vocab[token] for token, kind in zip(tokens, kinds, strict=True) if kind in _MERGED}
    unknown = tokens[fields["tokenizer.ggml.unknown_token_id"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(mergeable), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    whole = [token for token in _of_kind(fields, _USER_DEFINED) if token.strip(" ")]
    tokenizer.add_tokens([_added(token, special=False) for token in whole])
    if fields.get("tokenizer.ggml.add_bos_token", True):
        begin = fields["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[begin]} $A", special_tokens=[(tokens[begin], begin)]
        )
    return tokenizer


_MERGED = (_NORMAL, _USER_DEFINED)


def _merges(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, earlier tokens first, of one token the longest left part first.

    SentencePiece merges whichever pair makes the best piece (Kudo and Richardson, 2018); Gemma's pieces are numbered
    from best to worst.
    """
    merges = []
    for token in sorted(vocab, key=vocab.__getitem__):
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((left, right))
    return merges


def _of_kind(fields: Fields, kind: int) -> list[str]:
    pairs = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    return [token for token, found in pairs if found == kind]


def _added(token: str, *, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)
