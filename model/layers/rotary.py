"""Rotary position embedding (Su et al., 2021) and Llama 3's stretching of it. Knows positions, no attention.

Checkpoints pair dimension i with i + D/2, so a head is rotated half against half. Angles are float32, as in the models'
own code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import ModelConfig, RopeConfig, UnsupportedModelError
from model.kernels import pointwise
from model.layers.workspace import Workspace

_CHUNK = 2048
"""Positions by which the table grows: fixed, so that a position's bits do not depend on when it was first needed."""


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """[head_dim / 2] radians a position.

    Raises:
        UnsupportedModelError: the checkpoint asks for a scaling that is not served.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    scaling = rope.scaling
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise UnsupportedModelError(f"rope_scaling type {kind!r} is not served; supported: default, linear, llama3")


def _llama3(frequencies: Tensor, scaling: dict[str, float]) -> Tensor:
    """Stretch long wavelengths by `factor`, keep short ones, blend between (Llama 3.1 model card)."""
    factor, old_context = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    blend = (old_context / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    is_long, is_short = wavelengths > old_context / low, wavelengths < old_context / high
    return torch.where(is_long, frequencies / factor, torch.where(is_short, frequencies, blended))


class RotaryEmbedding:
    """Rotates queries and keys in place."""

    def __init__(self, config: ModelConfig, workspace: Workspace) -> None:
        self._frequencies = inverse_frequencies(config.rope, config.head_dim)
        self._head_dim = config.head_dim
        self._workspace = workspace
        self._table = torch.empty(0, config.head_dim, device=workspace.device)

    def reach(self, num_positions: int) -> None:
        """Make the table hold positions below `num_positions`: D/2 cosines, then D/2 sines each."""
        while self._table.shape[0] < num_positions:
            start = self._table.shape[0]
            positions = torch.arange(start, start + _CHUNK, dtype=torch.float32)
            angles = torch.outer(positions, self._frequencies)
            rows = torch.cat((angles.cos(), angles.sin()), -1)
            self._table = torch.cat((self._table, rows.to(self._workspace.device)))

    def __call__(self, qkv_TN: Tensor, positions_T: Tensor, num_heads: int) -> None:
        """Rotate the first `num_heads` heads of each token; `reach` must cover the positions (int32)."""
        rows, stride = qkv_TN.shape
        if qkv_TN.device.type == "cpu":
            x, positions, table = qkv_TN.data_ptr(), positions_T.data_ptr(), self._table.data_ptr()
            pointwise.rotary(self._workspace.threads, x, positions, table, rows, stride, num_heads, self._head_dim)
            return
        heads_THD = qkv_TN[:, : num_heads * self._head_dim].view(rows, num_heads, self._head_dim)
        cosines, sines = self._table[positions_T.long()].to(qkv_TN.dtype)[:, None].chunk(2, -1)
        a, b = heads_THD.chunk(2, -1)
        heads_THD.copy_(torch.cat((a * cosines - b * sines, b * cosines + a * sines), -1))
