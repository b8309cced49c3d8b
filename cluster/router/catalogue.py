"""The models that this router serves: limits, revision and tokenizer of each. Knows files; no replicas, no requests."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from argosy.v1 import inference_pb2 as api
from cluster.config import ArgosyConfig, ModelSection
from cluster.errors import ConfigurationError, FieldViolation, Reason, ServiceError
from cluster.grammar.probe import GrammarProbe
from cluster.ids import ModelName
from cluster.revision import model_revision
from cluster.router.chat_template import TemplateRefusedError
from cluster.router.tokenizer import ModelTokenizer, has_template
from cluster.router.validate import ModelLimits, SamplingDefaults
from model.config import ModelConfig

log = logging.getLogger(__name__)

INLINE_CHARACTERS = 8192
"""Longer texts are tokenised on another thread, so that they hold up no other stream."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One model. Its tokenizer loads in the background; requests that come earlier wait for it."""

    limits: ModelLimits
    architecture: str
    revision: str
    block_size: int
    batch_tokens: int
    grammars: GrammarProbe
    loading: asyncio.Task[ModelTokenizer]

    @property
    def name(self) -> ModelName:
        return ModelName(self.limits.name)

    async def tokenizer(self) -> ModelTokenizer:
        """Raises ConfigurationError: the files are broken."""
        return await asyncio.shield(self.loading)

    async def tokenise(self, request: api.GenerateRequest) -> Sequence[int]:
        """The prompt of a checked request in tokens.

        Raises:
            ServiceError: the chat template refuses the conversation.
        """
        kind = request.WhichOneof("input")
        if kind == "token_ids":
            return request.token_ids.ids
        tokenizer = await self.tokenizer()
        if kind == "prompt":
            if len(request.prompt) <= INLINE_CHARACTERS:
                return tokenizer.encode(request.prompt)
            return await asyncio.to_thread(tokenizer.encode, request.prompt)
        try:
            if request.chat.ByteSize() <= INLINE_CHARACTERS:
                return tokenizer.encode_chat(request.chat)
            return await asyncio.to_thread(tokenizer.encode_chat, request.chat)
        except TemplateRefusedError as error:
            violation = FieldViolation("chat.messages", f"the model's chat template refuses them: {str(error)[:200]}")
            raise ServiceError(Reason.INVALID_FIELD, violations=(violation,)) from None


class Catalogue(Mapping[str, ServedModel]):
    """Served models by name."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = dict(sorted(models.items()))
        self.refused: set[str] = set()
        """Models that were to be added and cannot be served here."""

    @classmethod
    def load(cls, config: ArgosyConfig) -> Catalogue:
        """Read every model's configuration now and start to load its tokenizer; needs a running event loop.

        Raises:
            ConfigurationError: a model's directory is missing or cannot be served.
        """
        return cls({section.name: _served_model(section, config) for section in config.models})

    def add(self, name: str, text: str, config: ArgosyConfig) -> ModelSection | None:
        """Serve one more model from now on.

        Args:
            text: its section as JSON.

        Returns:
            The section; None if it cannot be served here, which is logged and remembered.
        """
        try:
            section = ModelSection.model_validate_json(text)
            model = _served_model(section, config)
        except (ValidationError, ConfigurationError) as error:
            log.error("model %s cannot be served by this router: %s", name, error)
            self.refused.add(name)
            return None
        self._models = dict(sorted({**self._models, name: model}.items()))
        log.info("model %s was added", name)
        return section

    def close(self) -> None:
        """End what runs for the models."""
        for model in self._models.values():
            model.loading.cancel()
            model.grammars.close()

    def find(self, name: str) -> ServedModel:
        """Raises ServiceError: UNKNOWN_MODEL, naming the known ones."""
        model = self._models.get(name)
        if model is None:
            known = ", ".join(self._models)
            raise ServiceError(Reason.UNKNOWN_MODEL, f"{name[:128]!r} is not served; known models: {known}")
        return model

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Any:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)


def _served_model(section: ModelSection, config: ArgosyConfig) -> ServedModel:
    directory = section.directory(config.model_store)
    try:
        checkpoint = ModelConfig.from_checkpoint(directory)
        revision = model_revision(directory)
    except FileNotFoundError:
        raise ConfigurationError(
            f"models: {section.name}: {directory} has no config.json; run `argosy pull {section.name}` or set path"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"models: {section.name}: {error}") from None
    context_length = min(section.context_length or checkpoint.context_length, checkpoint.context_length)
    limits = ModelLimits(
        name=section.name,
        vocabulary_size=checkpoint.vocab_size,
        context_length=context_length,
        max_tokens=min(config.router.max_tokens, context_length),
        end_token_ids=checkpoint.eos_token_ids,
        has_chat_template=has_template(directory),
        defaults=sampling_defaults(directory),
    )
    return ServedModel(
        limits=limits,
        architecture=checkpoint.architecture,
        revision=revision,
        block_size=section.engine.block_size,
        batch_tokens=section.engine.max_batch_tokens,
        grammars=GrammarProbe(directory, checkpoint.vocab_size, checkpoint.eos_token_ids),
        loading=asyncio.create_task(asyncio.to_thread(ModelTokenizer.load, directory)),
    )


def sampling_defaults(directory: Path) -> SamplingDefaults:
    """The published defaults in `generation_config.json`; a value out of range is as good as none."""
    path = directory / "generation_config.json"
    published = json.loads(path.read_text()) if path.exists() else {}
    ranges = {
        "temperature": (0.0, 2.0),
        "top_k": (0, 2**31),
        "top_p": (1e-6, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (1e-6, 2.0),
    }
    values: dict[str, Any] = {
        name: value
        for name, (low, high) in ranges.items()
        if isinstance(value := published.get(name), int | float) and low <= value <= high
    }
    return SamplingDefaults(**values)
