"""Lays 8-bit and 4-bit weights out in strips, once, as `model.kernels.quantised_tile` reads them. Knows no layers."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from model.kernels.tile import STRIP
from model.quantization import GROUP

_LANE = 4
"""Neighbours along the inputs that share a lane."""


def _strips(rows: int) -> int:
    return -(-rows // STRIP)


def _fill_up(values: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros below and to the right."""
    return functional.pad(values, (0, columns - values.shape[1], 0, rows - values.shape[0]))


def pack_vector(values_N: Tensor | None, rows: int) -> Tensor:
    """float32 [strips * STRIP], the rest zeros; all zeros for None."""
    packed = torch.zeros(_strips(rows) * STRIP)
    if values_N is not None:
        packed[:rows].copy_(values_N)
    return packed


def pack_bytes(integers_NK: Tensor) -> Tensor:
    """int8 [N, K] as uint8 [strips, K / 4, STRIP, 4], biased by 128; K is filled up to whole groups."""
    rows, columns = integers_NK.shape
    strips, padded = _strips(rows), -(-columns // GROUP) * GROUP
    whole = _fill_up(integers_NK, strips * STRIP, padded)
    biased = (whole.view(torch.uint8) ^ 128).view(strips, STRIP, padded // _LANE, _LANE)
    return biased.transpose(1, 2).contiguous()


def pack_nibbles(integers_NK: Tensor, scales_NG: Tensor, minima_NG: Tensor) -> Tensor:
    """uint8 [N, K] of at most 15, K a multiple of GROUP, and float16 [N, G]: uint8 [strips, G, bytes of a group]."""
    rows, columns = integers_NK.shape
    strips, groups = _strips(rows), columns // GROUP
    whole = _fill_up(integers_NK, strips * STRIP, columns)
    steps = whole.view(strips, STRIP, groups, 2, GROUP // 2 // _LANE, _LANE).permute(3, 0, 2, 4, 1, 5)
    both = (steps[0] | steps[1] << 4).reshape(strips, groups, -1)
    halves = [
        _fill_up(part.view(torch.int16), strips * STRIP, groups).view(strips, STRIP, groups).transpose(1, 2)
        for part in (scales_NG, minima_NG)
    ]
    return torch.cat((both, *(part.contiguous().view(torch.uint8) for part in halves)), -1)
