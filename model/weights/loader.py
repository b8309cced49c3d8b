"""Reads one rank's slices of a checkpoint's weights, and nothing else of it. Knows the shard and the table, no layers.

Files are mapped, so only the pages of this rank's slices are read; what is returned is a copy in memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import ModelConfig
from model.parallel.partition import HeadShard, RankShard
from model.weights.checkpoint import WeightsError, match_spec, read_headers
from model.weights.shard_spec import Dim, ShardSpec, TensorRule, dim_span

OnProgress = Callable[[int, int], None]


def load_stage_weights(
    directory: Path,
    config: ModelConfig,
    shard: RankShard,
    spec: ShardSpec,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    on_progress: OnProgress,
) -> dict[str, Tensor]:
    """The weights of one rank by the names of `spec`; layers keep their numbers in the whole model.

    Padded heads are there already: zero rows of q_proj, zero columns of o_proj. Where embeddings are tied, the head has
    its own entry, which is the embedding's tensor if both are on this rank.

    Args:
        on_progress: called after each tensor with (bytes loaded, bytes in total) of this rank.

    Raises:
        WeightsError: the checkpoint does not fit the model, or cannot be read.
    """
    stored = read_headers(directory)
    match_spec(stored, spec, config)
    wanted = spec.stage_tensors(config, shard)
    # Tied weights are one tensor.
    rules = {tensor.source: tensor.rule for tensor in wanted}
    total = sum(_numel(config, shard, rule) for rule in rules.values()) * dtype.itemsize
    loaded: dict[str, Tensor] = {}
    num_bytes = 0
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for source, rule in rules.items():
            file = stored[source].file
            try:
                if file not in files:
                    files[file] = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
                tensor = _read(files[file].get_slice(source), config, shard, rule, dtype)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"tensor {source} cannot be read from {file.name}: {error}") from error
            loaded[source] = tensor.to(device)
            num_bytes += tensor.nbytes
            on_progress(num_bytes, total)
    return {tensor.name: loaded[tensor.source] for tensor in wanted}


def _numel(config: ModelConfig, shard: RankShard, rule: TensorRule) -> int:
    return torch.Size(_local_shape(config, shard, rule)).numel()


def _local_shape(config: ModelConfig, shard: RankShard, rule: TensorRule) -> list[int]:
    """Shape on this rank, padding included."""
    padded = {Dim.QUERY: len(shard.heads.slots) * config.head_dim}
    return [padded.get(dim, dim_span(config, shard, dim).size) for dim in rule.dims]


def _read(stored: Any, config: ModelConfig, shard: RankShard, rule: TensorRule, dtype: torch.dtype) -> Tensor:
    """This rank's part of one tensor. `stored` is a safetensors slice, which reads only what it is asked for."""
    shape = _local_shape(config, shard, rule)
    if rule.on_one_rank and shard.coordinates.tp_rank != 0:
        return torch.zeros(shape, dtype=dtype)
    spans = [dim_span(config, shard, dim) for dim in rule.dims]
    part = stored[tuple(slice(span.start, span.end) for span in spans)]
    if list(part.shape) == shape:
        return torch.empty(shape, dtype=dtype).copy_(part)
    return _pad_heads(part, shape, rule.dims.index(Dim.QUERY), shard.heads, config.head_dim, dtype)


def _pad_heads(part: Tensor, shape: list[int], dim: int, heads: HeadShard, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Put each real query head in its slot along `dim` and leave the other slots zero."""
    padded = torch.zeros(shape, dtype=dtype)
    for slot, head in enumerate(heads.slots):
        if head is not None:
            source = part.narrow(dim, (head - heads.query_heads.start) * head_dim, head_dim)
            padded.narrow(dim, slot * head_dim, head_dim).copy_(source)
    return padded
