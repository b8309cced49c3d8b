"""Keys and values of all sequences on one rank, in blocks. Knows block ids, not who owns them (the engine does).

The attention backend chooses the layout of a block; dimension 0 is the layer, dimension 1 the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import Int32Array


@dataclass(frozen=True, slots=True)
class KVCache:
    """Two tensors [layers, blocks, ...]. Fresh memory is zero, so nothing that was never written is NaN."""

    keys: Tensor
    values: Tensor

    @classmethod
    def allocate(
        cls,
        num_layers: int,
        num_blocks: int,
        key_block: tuple[int, ...],
        value_block: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVCache:
        """Memory for `num_blocks` blocks of the given shapes in each layer."""
        keys = torch.zeros(num_layers, num_blocks, *key_block, dtype=dtype, device=device)
        values = torch.zeros(num_layers, num_blocks, *value_block, dtype=dtype, device=device)
        return cls(keys, values)

    def copy_blocks(self, copies_C2: Int32Array) -> None:
        """Copy whole blocks, (source, destination) a row, as if all at once."""
        if copies_C2.shape[0] == 0:
            return
        pairs = torch.from_numpy(copies_C2).long().to(self.keys.device)
        for tensor in (self.keys, self.values):
            tensor[:, pairs[:, 1]] = tensor[:, pairs[:, 0]]
