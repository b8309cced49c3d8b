"""What an architecture is to a stage: how a layer is built and run, and what the outer weights are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from model.attention.interface import AttentionBackend
from model.config import ModelConfig
from model.layers.rotary import RotaryEmbedding
from model.layers.workspace import Workspace
from model.parallel.context import ParallelContext

Weights = dict[str, Any]
"""This rank's slices by their names in the checkpoint: tensors, and `QuantisedWeight`s where a product can have one.
Whoever uses one pops it: repacking holds no second copy."""


@dataclass(frozen=True, slots=True)
class StageParts:
    """What the layers of one stage share."""

    config: ModelConfig
    context: ParallelContext
    workspace: Workspace
    attention: AttentionBackend
    rotary: RotaryEmbedding
    local_rotary: RotaryEmbedding | None = None
    """Of layers with a window, where it is another one."""

    def rotary_of(self, layer: int) -> RotaryEmbedding:
        """The rotary embedding of a layer by its number in the model."""
        return self.local_rotary if self.local_rotary and self.config.window(layer) else self.rotary


class DecoderLayer(Protocol):
    """One layer on one rank."""

    def __call__(self, residual_TH: Tensor, delta_TH: Tensor | None, positions_T: Tensor) -> Tensor:
        """Add `delta_TH`, the previous layer's output, to the residual in place; return this layer's own last output.

        Adding late joins the addition with the norm that follows it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of checkpoints."""

    build_layer: Callable[[Weights, int, int, StageParts], DecoderLayer]
    """(weights, index in the model, index in the stage, parts)"""
    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    norm_offset: float = 0.0
    """Added to the weight of every norm: Gemma stores how far it is from 1."""
    embedding_scale: Callable[[ModelConfig], float] = lambda config: 1.0
    """Factor of embedded tokens."""
