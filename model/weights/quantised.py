"""Weights that are smaller in memory than the arithmetic's numbers. Knows formats only, no layers and no kernels.

MXFP4 and block FP8 are kept as a checkpoint stores them; 8-bit and 4-bit integers are made of any checkpoint as it is
loaded. All expand to what they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.quantization import GROUP

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


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """[N, K] of 8-bit integers, symmetric, with one scale a row."""

    integers: Tensor
    """int8 [N, K], at least -127."""
    scales: Tensor
    """float32 [N]"""

    @classmethod
    def of(cls, weight_NK: Tensor) -> Int8Weight:
        """The nearest: a row's largest magnitude becomes 127."""
        scales_N = weight_NK.float().abs().amax(1) / 127
        divisors_N1 = torch.where(scales_N > 0, scales_N, 1.0)[:, None]
        return cls((weight_NK.float() / divisors_N1).round().clamp(-127, 127).to(torch.int8), scales_N)

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K]."""
        return (self.integers.float() * self.scales[:, None]).to(dtype)

    def expand_rows(self, rows_T: Tensor, dtype: torch.dtype) -> Tensor:
        """Some of its rows [T, K]."""
        return Int8Weight(self.integers[rows_T], self.scales[rows_T]).expand(dtype)

    @property
    def shape(self) -> torch.Size:
        return self.integers.shape

    @property
    def nbytes(self) -> int:
        return self.integers.nbytes + self.scales.nbytes

    def to(self, device: torch.device | str) -> Int8Weight:
        return Int8Weight(self.integers.to(device), self.scales.to(device))

    @classmethod
    def stack(cls, weights: Sequence[Int8Weight]) -> Int8Weight:
        """One weight whose rows are those of all, in order."""
        return cls(torch.cat([each.integers for each in weights]), torch.cat([each.scales for each in weights]))


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """[N, K] of 4-bit integers: groups of 32 along K have a scale and a minimum (as GGUF's Q4_1). 5 bits an element."""

    packed: Tensor
    """uint8 [N, K / 2], K filled up to whole groups: two neighbours a byte, the lower half first."""
    scales: Tensor
    """float16 [N, groups]"""
    minima: Tensor
    """float16 [N, groups]"""
    columns: int
    """K"""

    @classmethod
    def of(cls, weight_NK: Tensor) -> Int4Weight:
        """The nearest on the grid from each group's smallest to its largest element.

        Raises:
            ValueError: a weight does not fit float16.
        """
        rows, columns = weight_NK.shape
        padding = -columns % GROUP
        # Filled up with the last element: zeros could widen the last group's range.
        filled = torch.cat((weight_NK.float(), weight_NK[:, -1:].float().expand(rows, padding)), 1)
        groups_NGE = filled.view(rows, -1, GROUP)
        low, high = groups_NGE.amin(-1), groups_NGE.amax(-1)
        scales, minima = ((high - low) / 15).half(), low.half()
        if not (scales.isfinite().all() and minima.isfinite().all()):
            raise ValueError("a weight is too large for the scales of int4; use quantization int8 or none")
        divisors = torch.where(scales > 0, scales.float(), 1.0)[..., None]
        nibbles = ((groups_NGE - minima.float()[..., None]) / divisors).round().clamp(0, 15).to(torch.uint8)
        flat = nibbles.view(rows, -1)
        return cls(flat[:, 0::2] | flat[:, 1::2] << 4, scales, minima, columns)

    @property
    def integers(self) -> Tensor:
        """uint8 [N, K filled up]"""
        return torch.stack((self.packed & 15, self.packed >> 4), -1).flatten(1)

    def expand(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K]."""
        grouped = self.integers.view(self.packed.shape[0], -1, GROUP).float()
        expanded = grouped * self.scales.float()[..., None] + self.minima.float()[..., None]
        return expanded.flatten(1)[:, : self.columns].to(dtype)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.packed.shape[0], self.columns))

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.minima.nbytes

    def to(self, device: torch.device | str) -> Int4Weight:
        return Int4Weight(self.packed.to(device), self.scales.to(device), self.minima.to(device), self.columns)

    @classmethod
    def stack(cls, weights: Sequence[Int4Weight]) -> Int4Weight:
        """One weight whose rows are those of all, in order."""
        packed, scales, minima = (
            torch.cat([getattr(each, name) for each in weights]) for name in ("packed", "scales", "minima")
        )
        return cls(packed, scales, minima, weights[0].columns)


IntegerWeight = Int8Weight | Int4Weight
QuantisedWeight = MXFP4Weight | BlockFP8Weight | IntegerWeight
