"""What a stage asks of an attention backend. Knows batches and one rank's heads, no kernels.

Legend: T packed tokens, H query heads, K KV heads, D head size, N = (H + 2 K) D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from model.batch import Batch
from model.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One rank's attention, the same in every layer."""

    num_heads: int
    """Query heads, padding included: `num_kv_heads` groups of one size."""
    num_kv_heads: int
    head_dim: int
    block_size: int
    """Tokens of a KV block."""
    scale: float | None = None
    """Factor of the scores; None: head_dim ** -0.5."""
    has_sinks: bool = False
    """Whether `attend` will be given sinks."""

    @property
    def score_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def group_size(self) -> int:
        return self.num_heads // self.num_kv_heads


class AttentionBackend(Protocol):
    """Causal attention over paged keys and values, for all layers of one stage."""

    @property
    def cache(self) -> KVCache: ...

    def begin(self, batch: Batch) -> None:
        """Make ready for the layers of one pass: everything that depends on the batch but not on the layer."""
        ...

    def attend(self, qkv_TN: Tensor, layer: int, window: int = 0, sinks_H: Tensor | None = None) -> Tensor:
        """Store the pass's (rotated) keys and values in `layer` of the cache, then attend: [T, H * D].

        Args:
            window: keys that a query sees, its own included; 0: all up to itself.
            sinks_H: a score of each query head that takes weight and has no value (Xiao et al., 2023), float32.
        """
        ...
