"""One model's text side: its tokenizer, chat template and decoder, from the checkpoint's files. Knows no requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from argosy.v1 import inference_pb2 as api
from cluster.errors import ConfigurationError
from cluster.router import conversation
from cluster.router.chat_template import ChatTemplate
from cluster.router.detokenise import Decoder, decoder_factory
from cluster.router.reasoning import ReasoningMarks, find_marks

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ModelTokenizer:
    """Text to tokens and back for one checkpoint. Methods may be called from any thread."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        # A tokenizer.json may carry the settings of whoever trained it.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self._make_decoder = decoder_factory(tokenizer)
        self.reasoning: ReasoningMarks | None = find_marks(tokenizer.token_to_id)
        """What the model sets around its reasoning; None if it does not reason aloud."""

    @classmethod
    def load(cls, directory: Path, now: Callable[[], datetime] = datetime.now) -> ModelTokenizer:
        """Read `tokenizer.json`, and `chat_template.jinja` or the template in `tokenizer_config.json`.

        Raises:
            ConfigurationError: a file is missing or broken; the message names it.
        """
        path = directory / "tokenizer.json"
        if not path.exists():
            raise ConfigurationError(f"{path}: no such file; `argosy pull` makes a directory that can be served")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a broken file
            raise ConfigurationError(f"{path}: not a tokenizer: {error}") from None
        settings = _read_json(directory / "tokenizer_config.json")
        source = template_source(directory, settings)
        special = special_tokens(settings, _read_json(directory / "special_tokens_map.json"))
        try:
            template = None if source is None else ChatTemplate(source, special, now)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigurationError(f"{directory}: the chat template is broken: {error.message}") from None
        return cls(tokenizer, template)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, with the begin-of-text token where the checkpoint adds one."""
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def encode_chat(self, chat: api.Chat) -> list[int]:
        """Tokens of a checked conversation, rendered; the template itself writes the special tokens.

        Raises:
            TemplateRefusedError: the template refuses the conversation.
        """
        assert self._template is not None, "the validator refuses chats to models without a template"
        if self._template.knows_tools:
            text = self._template.render(*conversation.native(chat))
        else:
            text = self._template.render(conversation.described(chat))
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_text(self, token_id: int) -> str:
        """One token by itself; where it is no whole character, with U+FFFD in its place."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def decoder(self, prompt: Sequence[int]) -> Decoder:
        """A decoder for one choice that follows `prompt`."""
        return self._make_decoder(prompt)


def has_template(directory: Path) -> bool:
    """Whether conversations can be rendered; reads no tokenizer."""
    return template_source(directory, _read_json(directory / "tokenizer_config.json")) is not None


def template_source(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template's text: its own file, else the configuration's; of several, the one named `default`."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text()
    source = settings.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return source


def special_tokens(*settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name; earlier settings win. A token is text, or an object with `content`."""
    tokens: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        for values in settings:
            value = values.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                tokens.setdefault(name, value)
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigurationError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}: not a JSON object")
    return value
