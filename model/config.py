"""A checkpoint's shape, read from its config.json. Knows names and numbers, no tensors, no torch.

Keys that mean something in one family only are read in `model.config_families`; all else reads these fields.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config_families import FAMILIES, common_fields
from model.config_parts import ExpertsConfig as ExpertsConfig
from model.config_parts import LatentConfig as LatentConfig
from model.config_parts import Quantisation as Quantisation
from model.config_parts import RopeConfig as RopeConfig
from model.config_parts import UnsupportedModelError as UnsupportedModelError

SUPPORTED_ARCHITECTURES = tuple(FAMILIES)


@dataclass(frozen=True)
class ModelConfig:
    """The dimensions of a decoder-only transformer. Sizes are in elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    attention_scale: float | None = None
    """Factor of attention scores; None: head_dim ** -0.5."""
    windows: tuple[int, ...] = ()
    """Keys that a query sees in each layer, 0: all before it. Empty: all, in every layer."""
    local_rope: RopeConfig | None = None
    """Rotary embedding of the layers with a window, where it is another one."""
    attention_sinks: bool = False
    """Each query head has a score that takes weight and has no value."""
    swiglu_limit: float = 0.0
    """gpt-oss: where gate and up projections are clamped."""
    experts: ExpertsConfig | None = None
    latent: LatentConfig | None = None
    quantisation: Quantisation | None = None

    def window(self, layer: int) -> int:
        """Keys that a query sees in that layer; 0: all before it."""
        return self.windows[layer] if self.windows else 0

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer has experts."""
        return self.experts is not None and layer not in self.experts.dense_layers

    @classmethod
    def from_checkpoint(cls, directory: Path) -> ModelConfig:
        """Read `config.json` (and `generation_config.json` for end tokens).

        Raises:
            FileNotFoundError: there is no config.json.
            UnsupportedModelError: the architecture is not served, or it needs remote code.
        """
        raw = json.loads((directory / "config.json").read_text())
        generation_file = directory / "generation_config.json"
        generation = json.loads(generation_file.read_text()) if generation_file.exists() else {}
        return cls.from_dict(raw, generation)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
        """As `from_checkpoint`, from the files' contents."""
        if "auto_map" in raw:
            raise UnsupportedModelError("config.json has auto_map: the model needs remote code, which is never run")
        architectures = raw.get("architectures") or []
        architecture = architectures[0] if architectures else "(none)"
        if architecture not in SUPPORTED_ARCHITECTURES:
            known = ", ".join(SUPPORTED_ARCHITECTURES)
            raise UnsupportedModelError(f"architecture {architecture!r} is not served; supported: {known}")
        fields = common_fields(raw, generation or {})
        return cls(**(fields | FAMILIES[architecture](raw, fields)))
