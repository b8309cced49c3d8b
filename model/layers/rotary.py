"""Rotary position embedding (Su et al., 2021) and what stretches it to longer contexts. Knows positions, no attention.

Checkpoints pair dimension i with i + D/2, so a head is rotated half against half. Angles are float32, as in the models'
own code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from model.config import RopeConfig, UnsupportedModelError
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
    if kind == "yarn":
        return _yarn(frequencies, scaling, rope.theta, head_dim)
    raise UnsupportedModelError(f"rope_scaling type {kind!r} is not served; supported: default, linear, llama3, yarn")


def magnitude(rope: RopeConfig) -> float:
    """Factor of rotated queries and keys: YaRN sharpens attention by it (Peng et al., 2023, section 3.4), else 1."""
    scaling = rope.scaling or {}
    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    log_factor = 0.1 * math.log(max(1.0, scaling["factor"]))
    return (mscale * log_factor + 1) / (all_dim * log_factor + 1) if mscale and all_dim else log_factor + 1


def _llama3(frequencies: Tensor, scaling: dict[str, float]) -> Tensor:
    """Stretch long wavelengths by `factor`, keep short ones, blend between (Llama 3.1 model card)."""
    factor, old_context = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    blend = (old_context / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    is_long, is_short = wavelengths > old_context / low, wavelengths < old_context / high
    return torch.where(is_long, frequencies / factor, torch.where(is_short, frequencies, blended))


def _yarn(frequencies: Tensor, scaling: dict[str, Any], theta: float, head_dim: int) -> Tensor:
    """Stretch dimensions that turn less than `beta_slow` times in the old context by `factor`, keep those that turn
    more than `beta_fast` times, blend between."""
    old_context, factor = scaling["original_max_position_embeddings"], float(scaling["factor"])

    def dimension(turns: float) -> float:
        return head_dim * math.log(old_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low: float
    high: float
    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0
    ramp: Tensor = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    stretched = ramp.clamp(0, 1)
    return frequencies / factor * stretched + frequencies * (1 - stretched)


class RotaryEmbedding:
    """Rotates queries and keys in place."""

    def __init__(self, rope: RopeConfig, head_dim: int, workspace: Workspace) -> None:
        self._frequencies, self._magnitude = inverse_frequencies(rope, head_dim), magnitude(rope)
        self._head_dim = head_dim
        self._workspace = workspace
        self._table = torch.empty(0, head_dim, device=workspace.device)

    def reach(self, num_positions: int) -> None:
        """Make the table hold positions below `num_positions`: D/2 cosines, then D/2 sines each."""
        while self._table.shape[0] < num_positions:
            start = self._table.shape[0]
            positions = torch.arange(start, start + _CHUNK, dtype=torch.float32)
            angles = torch.outer(positions, self._frequencies)
            rows = torch.cat((angles.cos(), angles.sin()), -1) * self._magnitude
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
