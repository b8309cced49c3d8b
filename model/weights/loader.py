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
from model.weights.quantised import Int4Weight, Int8Weight, IntegerWeight
from model.weights.shard_spec import Cut, ShardSpec, TensorRule, dim_span, local_shape, rank_bytes

OnProgress = Callable[[int, int], None]
_FORMS: dict[str, type[IntegerWeight]] = {"int8": Int8Weight, "int4": Int4Weight}


def load_stage_weights(
    directory: Path,
    config: ModelConfig,
    shard: RankShard,
    spec: ShardSpec,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    on_progress: OnProgress,
) -> dict[str, Tensor | IntegerWeight]:
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
    wanted = spec.stage_tensors(shard)
    # Tied weights are one tensor.
    rules = {tensor.source: tensor.rule for tensor in wanted}
    total = rank_bytes(spec, shard, dtype.itemsize)
    loaded: dict[str, Tensor | IntegerWeight] = {}
    num_bytes = 0
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for source, rule in rules.items():
            file = stored[source].file
            try:
                if file not in files:
                    files[file] = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
                tensor = _read(files[file].get_slice(source), shard, rule, dtype)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"tensor {source} cannot be read from {file.name}: {error}") from error
            held = _hold(source, tensor, rule).to(device)
            loaded[source] = held
            num_bytes += held.nbytes
            on_progress(num_bytes, total)
    return {tensor.name: loaded[tensor.source] for tensor in wanted}


def _hold(source: str, tensor: Tensor, rule: TensorRule) -> Tensor | IntegerWeight:
    """The tensor as the rank keeps it."""
    try:
        return tensor if rule.made is None else _FORMS[rule.made].of(tensor)
    except ValueError as error:
        raise WeightsError(f"tensor {source}: {error}") from error


def _read(stored: Any, shard: RankShard, rule: TensorRule, dtype: torch.dtype) -> Tensor:
    """This rank's part of one tensor. `stored` is a safetensors slice, which reads only what it is asked for."""
    shape = local_shape(shard, rule)
    if rule.on_one_rank and shard.coordinates.tp_rank != 0:
        return torch.zeros(shape, dtype=dtype)
    spans = [dim_span(shard, dim) for dim in rule.dims]
    part = stored[tuple(slice(span.start, span.end) for span in spans)]
    if list(part.shape) == shape:
        return torch.empty(shape, dtype=part.dtype if rule.kept else dtype).copy_(part)
    dim = next(index for index, dim in enumerate(rule.dims) if dim.cut is Cut.QUERY_HEADS)
    return _pad_heads(part, shape, dim, shard.heads, rule.dims[dim].width, dtype)


def _pad_heads(part: Tensor, shape: list[int], dim: int, heads: HeadShard, width: int, dtype: torch.dtype) -> Tensor:
    """Put each real query head in its slot along `dim` and leave the other slots zero."""
    padded = torch.zeros(shape, dtype=dtype)
    for slot, head in enumerate(heads.slots):
        if head is not None:
            source = part.narrow(dim, (head - heads.query_heads.start) * width, width)
            padded.narrow(dim, slot * width, width).copy_(source)
    return padded
