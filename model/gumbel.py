"""Gumbel noise by torch operators on any device, from the words of `kernels.sampling`. Knows tokens and seeds.

The words are equal everywhere; logarithms may differ in the last bit between devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.kernels.sampling import STREAM

_LOW = 0xFFFFFFFF
_ROUNDS = 10


def _product(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 32 bits of constant * x, for words held in int64. Halves keep the products below 2**63."""
    low, high = constant * (x & 0xFFFF), constant * (x >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Philox 4x32-10 (Salmon et al., 2011) on words held in int64 tensors that broadcast."""
    a, b, c, d = counter
    low, high = key
    for _ in range(_ROUNDS):
        upper_a, lower_a = _product(0xD2511F53, a)
        upper_c, lower_c = _product(0xCD9E8D57, c)
        a, b, c, d = upper_c ^ b ^ low, lower_c, upper_a ^ d ^ high, lower_a
        low, high = (low + 0x9E3779B9) & _LOW, (high + 0xBB67AE85) & _LOW
    return [a, b, c, d]


def gumbel_noise(
    first: int, width: int, seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int], device: torch.device
) -> Tensor:
    """[rows, width] standard Gumbel noise of tokens `first` to `first + width`, float32."""

    def column(values: Sequence[int]) -> Tensor:
        return torch.tensor([value & _LOW for value in values], dtype=torch.int64, device=device)[:, None]

    tokens = torch.arange(first, first + width, device=device)
    counter = (tokens // 64 * 16 + tokens % 16)[None]
    stream = torch.full_like(counter, STREAM)
    key = (column(seeds), column([seed >> 32 for seed in seeds]))
    words = torch.stack(philox((counter, column(positions), column(choices), stream), key))
    chosen = words.gather(0, (tokens % 64 // 16).expand(1, len(seeds), width))[0]
    uniform = (chosen.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform)).float()
