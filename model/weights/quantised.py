"""Weights that stay in memory as small as a checkpoint stores them, and are expanded when used. Knows formats only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True)
class MXFP4Weight:
    """[N, K] in the OCP Microscaling format (v1.0, 2023): 4-bit floats, 32 neighbours along K share a power of two.

    4.25 bits an element.
    """

    blocks: Tensor
    """uint8 [N, K / 32, 16]: two elements a byte, the lower half first."""
    scales: Tensor
    """uint8 [N, K / 32]: exponents, biased by 127."""

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K]."""
        values = torch.tensor([*_FP4, *(-value for value in _FP4)], device=self.blocks.device)
        low, high = values[(self.blocks & 15).int()], values[(self.blocks >> 4).int()]
        grouped = torch.stack((low, high), -1).flatten(-2)
        scaled = torch.ldexp(grouped, self.scales.int()[..., None] - 127)
        return scaled.flatten(-2).to(dtype)


@dataclass(frozen=True, slots=True)
class BlockFP8Weight:
    """[N, K] of 8-bit floats (e4m3) in square blocks of one scale (DeepSeek-V3, 2024, section 3.3)."""

    weight: Tensor
    """float8_e4m3fn [N, K]"""
    scales: Tensor
    """float32, one for each block that the weight touches."""
    block: int
    row_offset: int
    """Rows of the first block that are on other ranks."""
    column_offset: int

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K]."""
        rows, columns = (torch.arange(size, device=self.weight.device) for size in self.weight.shape)
        by_row = self.scales[(rows + self.row_offset) // self.block]
        return (self.weight.float() * by_row[:, (columns + self.column_offset) // self.block]).to(dtype)


QuantisedWeight = MXFP4Weight | BlockFP8Weight
