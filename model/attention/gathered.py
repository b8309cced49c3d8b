"""Attention by plain torch operators over gathered keys and values: any device, any shape, slow. Knows no kernels.

For shapes that the CPU kernels do not serve, and the yardstick of the other backends. One sequence at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention.interface import AttentionShape
from model.batch import Batch
from model.kv_cache import KVCache


class GatheredAttention:
    """`AttentionBackend` with blocks [block, K, D]."""

    def __init__(
        self, shape: AttentionShape, num_layers: int, num_blocks: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = shape
        block = (shape.block_size, shape.num_kv_heads, shape.head_dim)
        self.cache = KVCache.allocate(num_layers, num_blocks, block, block, dtype=dtype, device=device)
        self._device = device

    def begin(self, batch: Batch) -> None:
        self._batch = batch
        size = self._shape.block_size
        self._slots: list[Tensor] = []
        for row in range(batch.num_rows):
            blocks = torch.from_numpy(batch.block_tables[row]).long()
            slots = (blocks[:, None] * size + torch.arange(size)).flatten()[: int(batch.context_lengths[row])]
            self._slots.append(slots.to(self._device))

    def attend(self, qkv_TN: Tensor, layer: int, window: int = 0, sinks_H: Tensor | None = None) -> Tensor:
        shape = self._shape
        qkv_THD = qkv_TN.view(qkv_TN.shape[0], -1, shape.head_dim)
        parts = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        queries, keys, values = torch.split(qkv_THD, parts, 1)
        key_slots, value_slots = self.cache.keys[layer].flatten(0, 1), self.cache.values[layer].flatten(0, 1)
        out_THD = torch.empty_like(queries)
        starts = self._batch.query_starts.tolist()
        for slots, start, end in zip(self._slots, starts, starts[1:], strict=False):
            own = slots[slots.shape[0] - (end - start) :]
            key_slots[own], value_slots[own] = keys[start:end], values[start:end]
            out_THD[start:end] = self._one(queries[start:end], key_slots[slots], value_slots[slots], window, sinks_H)
        return out_THD.flatten(1)

    def _one(
        self, queries_THD: Tensor, keys_CKD: Tensor, values_CKD: Tensor, window: int, sinks_H: Tensor | None
    ) -> Tensor:
        """The last T of C tokens of one sequence."""
        group = self._shape.group_size
        keys_CHD = keys_CKD.repeat_interleave(group, 1)
        values_CHD = values_CKD.repeat_interleave(group, 1)
        scores_HTC = torch.einsum("thd,chd->htc", queries_THD, keys_CHD) * self._shape.score_scale
        tokens, context = queries_THD.shape[0], keys_CKD.shape[0]
        reach = torch.arange(context - tokens, context, device=self._device)
        distance_TC = reach[:, None] - torch.arange(context, device=self._device)[None, :]
        hidden_TC = distance_TC < 0 if window == 0 else (distance_TC < 0) | (distance_TC >= window)
        scores_HTC = scores_HTC.float().masked_fill(hidden_TC, float("-inf"))
        if sinks_H is not None:
            sinks_HT1 = sinks_H.float()[:, None, None].expand(-1, tokens, 1)
            weights_HTC = torch.cat((scores_HTC, sinks_HT1), -1).softmax(-1)[..., :context]
        else:
            weights_HTC = scores_HTC.softmax(-1)
        return torch.einsum("htc,chd->thd", weights_HTC.to(values_CKD.dtype), values_CHD)
