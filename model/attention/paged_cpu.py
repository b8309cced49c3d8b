"""Attention on CPU, float32, by compiled kernels that read the blocks in place. Knows how a batch is cut into tiles."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from model.attention.interface import AttentionShape
from model.batch import Batch, Int32Array
from model.kernels import attention as kernels
from model.kernels.threads import num_threads
from model.kernels.vector import LANES
from model.kv_cache import KVCache


def supports(shape: AttentionShape) -> str | None:
    """None if the kernels can serve this shape, else why not."""
    if shape.block_size % LANES or kernels.SEGMENT % shape.block_size:
        return f"block size {shape.block_size} is not one of 16, 32, 64, 128, 256"
    return None


def padded_head_dim(head_dim: int) -> int:
    """Heads are filled up with zeros to whole vectors: neither scores nor the rest of the values change."""
    return -(-head_dim // LANES) * LANES


def cut_into_tiles(batch: Batch, tokens_per_tile: int) -> Int32Array:
    """[tiles, 3]: row, first token and number of tokens of each tile; those with the longest contexts first.

    Threads take tiles one by one, so the longest must not come last.
    """
    counts = np.diff(batch.query_starts)
    tiles_of_row = -(-counts // tokens_per_tile)
    rows = np.repeat(np.arange(batch.num_rows, dtype=np.int32), tiles_of_row)
    within = np.arange(rows.size, dtype=np.int32) - np.repeat(np.cumsum(tiles_of_row) - tiles_of_row, tiles_of_row)
    starts = batch.query_starts[rows] + within * tokens_per_tile
    ends = np.minimum(starts + tokens_per_tile, batch.query_starts[rows + 1])
    order = np.argsort(-batch.positions[ends - 1], kind="stable")
    return np.ascontiguousarray(np.stack((rows, starts, ends - starts), 1)[order], dtype=np.int32)


class PagedCPUAttention:
    """`AttentionBackend` whose rows have the same bits alone, batched, in chunks and one by one."""

    def __init__(self, shape: AttentionShape, num_layers: int, num_blocks: int) -> None:
        reason = supports(shape)
        if reason is not None:
            raise ValueError(f"the CPU attention kernels cannot serve this model: {reason}")
        heads, size, block = shape.num_kv_heads, padded_head_dim(shape.head_dim), shape.block_size
        self._heads = kernels.Heads(heads, shape.group_size, size, block, shape.score_scale)
        self._padding = size - shape.head_dim
        key_block, value_block = (heads, size, block), (heads, block, size)
        self.cache = KVCache.allocate(
            num_layers, num_blocks, key_block, value_block, dtype=torch.float32, device=torch.device("cpu")
        )
        self._pages = [
            kernels.Pages(keys.data_ptr(), values.data_ptr())
            for keys, values in zip(self.cache.keys, self.cache.values, strict=True)
        ]
        self._tokens_per_tile = max(1, kernels.TILE_ROWS // shape.group_size)
        self._head_dim = shape.head_dim
        self._out_features = shape.num_heads * size
        self._threads = num_threads()
        self._scratch = torch.zeros(kernels.scratch_elements(self._threads, self._heads))
        self._counter = np.zeros(1, np.int64)
        self._space = kernels.Workspace(self._threads, self._counter.ctypes.data, self._scratch.data_ptr())
        self._out = torch.empty(0, self._out_features)
        self._held: tuple[Int32Array, ...] = ()

    def begin(self, batch: Batch) -> None:
        tiles = cut_into_tiles(batch, self._tokens_per_tile)
        row_of_token = np.repeat(np.arange(batch.num_rows, dtype=np.int32), np.diff(batch.query_starts))
        positions, tables = np.ascontiguousarray(batch.positions), np.ascontiguousarray(batch.block_tables)
        self._held = (positions, row_of_token, tables, tiles)  # alive while the plan has their addresses
        self._plan = kernels.Plan(
            batch.num_tokens,
            positions.ctypes.data,
            row_of_token.ctypes.data,
            tables.ctypes.data,
            tables.shape[1],
            tiles.shape[0],
            tiles.ctypes.data,
        )
        if self._out.shape[0] != batch.num_tokens:
            self._out = torch.empty(batch.num_tokens, self._out_features)

    def attend(self, qkv_TN: Tensor, layer: int, window: int = 0, sinks_H: Tensor | None = None) -> Tensor:
        tokens = qkv_TN.shape[0]
        if self._padding:
            qkv_TN = functional.pad(qkv_TN.view(tokens, -1, self._head_dim), (0, self._padding))
        qkv, pages = qkv_TN.data_ptr(), self._pages[layer]
        kernels.store_keys_and_values(self._threads, qkv, self._heads, pages, self._plan)
        self._counter[0] = 0
        limits = kernels.Limits(window, 0 if sinks_H is None else sinks_H.data_ptr())
        kernels.attend(qkv, self._out.data_ptr(), self._heads, pages, self._plan, limits, self._space)
        if not self._padding:
            return self._out
        return (
            self._out.view(tokens, -1, self._head_dim + self._padding)[..., : self._head_dim]
            .reshape(tokens, -1)
            .contiguous()
        )
