"""The parts of a model's configuration that only some families have. Names and numbers, no parsing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


class UnsupportedModelError(ValueError):
    """The checkpoint cannot be served; the message names what is unsupported and what is supported."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al., 2021)."""

    theta: float = 10_000.0
    scaling: dict[str, Any] | None = None


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of the MLP of some layers (Shazeer et al., 2017)."""

    num_experts: int
    top_k: int
    intermediate_size: int
    """Inner size of one expert."""
    shared_intermediate_size: int = 0
    """Inner size of the expert that sees every token; 0: there is none."""
    scoring: Literal["softmax", "softmax of chosen", "sigmoid"] = "softmax"
    """What makes weights of router logits: over all experts, over the chosen ones, or each by itself."""
    normalise: bool = True
    """The chosen experts' weights are divided by their sum."""
    num_groups: int = 1
    top_groups: int = 1
    """Experts are chosen from the best `top_groups` of `num_groups` groups (DeepSeek-V3)."""
    scaling_factor: float = 1.0
    """Factor of the weights."""
    dense_layers: tuple[int, ...] = ()
    """Layers that keep an MLP of `intermediate_size`."""


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values are projections of one small vector a token."""

    query_rank: int | None
    """Size of the queries' latent; None: queries are projected directly."""
    rank: int
    """Size of the keys' and values' latent."""
    nope_head_dim: int
    """Part of a query and key head without positions."""
    rope_head_dim: int
    """Part with positions; the key's is shared by all heads."""
    value_head_dim: int
    interleaved: bool = True
    """Rotary pairs are neighbours in the checkpoint."""

    @property
    def cached_size(self) -> int:
        """Elements a token that the cache must keep."""
        return self.rank + self.rope_head_dim


@dataclass(frozen=True)
class Quantisation:
    """How the checkpoint stores its large weights."""

    method: Literal["mxfp4", "fp8"]
    """mxfp4: experts, 4-bit floats in groups of 32 along inputs; fp8: all layers' products, one scale a block."""
    block: int
    """Elements that share a scale: along inputs (mxfp4), along both dimensions (fp8)."""
