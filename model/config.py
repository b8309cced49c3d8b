"""A checkpoint's shape, read from its config.json. Knows names and numbers, no tensors, no torch.

Architecture-specific keys are parsed by `from_checkpoint`; the rest of the code reads only these fields.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)


class UnsupportedModelError(ValueError):
    """The checkpoint cannot be served; the message names what is unsupported and what is supported."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al., 2021)."""

    theta: float = 10_000.0
    scaling: dict[str, Any] | None = None


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
        if "auto_map" in raw:
            raise UnsupportedModelError("config.json has auto_map: the model needs remote code, which is never run")
        architectures = raw.get("architectures") or []
        architecture = architectures[0] if architectures else "(none)"
        if architecture not in SUPPORTED_ARCHITECTURES:
            known = ", ".join(SUPPORTED_ARCHITECTURES)
            raise UnsupportedModelError(f"architecture {architecture!r} is not served; supported: {known}")
        num_heads = int(raw["num_attention_heads"])
        eos = (generation or {}).get("eos_token_id", raw.get("eos_token_id"))
        # transformers 5 writes rope_parameters; earlier versions rope_theta and rope_scaling.
        rope_parameters = raw.get("rope_parameters") or {}
        theta = rope_parameters.get("rope_theta", raw.get("rope_theta", 10_000.0))
        scaling = raw.get("rope_scaling") or ({**rope_parameters} if rope_parameters else None)
        if scaling is not None and scaling.get("rope_type", scaling.get("type", "default")) == "default":
            scaling = None
        return cls(
            architecture=architecture,
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_layers=int(raw["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // num_heads),
            context_length=int(raw["max_position_embeddings"]),
            rms_norm_eps=float(raw["rms_norm_eps"]),
            rope=RopeConfig(theta=float(theta), scaling=scaling),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            hidden_act=str(raw.get("hidden_act", "silu")),
            bos_token_id=raw.get("bos_token_id"),
            eos_token_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (int(eos),)),
        )
