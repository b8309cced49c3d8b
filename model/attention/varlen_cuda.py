"""Attention on CUDA: torch's variable-length flash attention over a block table. Knows torch's operator, no layers.

It never ran on a GPU, so it raises unless `allow_untested_gpu`. Written from the documentation
of `torch.nn.attention.varlen.varlen_attn` (torch 2.13).
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention.interface import AttentionShape
from model.batch import Batch
from model.kv_cache import KVCache

_LARGEST_HEAD = 256


class VarlenCUDAAttention:
    """`AttentionBackend` with blocks [block, K, D], bfloat16 or float16."""

    def __init__(
        self,
        shape: AttentionShape,
        num_layers: int,
        num_blocks: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        deterministic: bool,
        allow_untested_gpu: bool,
    ) -> None:
        if not allow_untested_gpu:
            raise ValueError("the CUDA attention path never ran on a GPU: set allow_untested_gpu: true to try it")
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"flash attention takes bfloat16 or float16, not {dtype}: set dtype: bfloat16")
        if shape.has_sinks or shape.head_dim > _LARGEST_HEAD:
            what = "sinks" if shape.has_sinks else f"heads of {shape.head_dim} elements (at most {_LARGEST_HEAD})"
            raise ValueError(f"torch's flash attention has no {what}: this model is served on CPU only")
        from torch.nn.attention import varlen

        self._varlen_attn = varlen.varlen_attn
        self._shape, self._device = shape, device
        self._num_splits = 1 if deterministic else None
        block = (shape.block_size, shape.num_kv_heads, shape.head_dim)
        self.cache = KVCache.allocate(num_layers, num_blocks, block, block, dtype=dtype, device=device)

    def begin(self, batch: Batch) -> None:
        lengths = batch.query_starts[1:] - batch.query_starts[:-1]
        self._max_queries, self._max_keys = int(lengths.max()), int(batch.context_lengths.max())
        self._query_starts = torch.from_numpy(batch.query_starts).to(self._device, non_blocking=True)
        self._context_lengths = torch.from_numpy(batch.context_lengths).to(self._device, non_blocking=True)
        self._block_tables = torch.from_numpy(batch.block_tables).to(self._device, non_blocking=True)
        rows = torch.repeat_interleave(torch.arange(batch.num_rows), torch.from_numpy(lengths).long())
        positions = torch.from_numpy(batch.positions).long()
        blocks = torch.from_numpy(batch.block_tables).long()[rows, positions // self._shape.block_size]
        slots = blocks * self._shape.block_size + positions % self._shape.block_size
        self._slots = slots.to(self._device, non_blocking=True)

    def attend(self, qkv_TN: Tensor, layer: int, window: int = 0, sinks_H: Tensor | None = None) -> Tensor:
        assert sinks_H is None, "refused when the shard was made"
        shape = self._shape
        heads = qkv_TN.view(qkv_TN.shape[0], -1, shape.head_dim)
        queries, keys, values = torch.split(heads, [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], 1)
        key_pages, value_pages = self.cache.keys[layer], self.cache.values[layer]
        key_pages.flatten(0, 1)[self._slots] = keys
        value_pages.flatten(0, 1)[self._slots] = values
        out = self._varlen_attn(
            queries.contiguous(),
            key_pages,
            value_pages,
            self._query_starts,
            None,
            self._max_queries,
            self._max_keys,
            scale=self._shape.score_scale,
            window_size=(window - 1, 0),
            enable_gqa=True,
            seqused_k=self._context_lengths,
            block_table=self._block_tables,
            num_splits=self._num_splits,
        )
        assert isinstance(out, Tensor)
        return out.flatten(1)
