"""Which attention backend serves a shape on a device. Decided once, when a shard is made."""

from __future__ import annotations

import torch

from model.attention.gathered import GatheredAttention
from model.attention.interface import AttentionBackend, AttentionShape
from model.attention.paged_cpu import PagedCPUAttention, supports


def make_attention(
    shape: AttentionShape,
    num_layers: int,
    num_blocks: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    deterministic: bool,
    allow_untested_gpu: bool,
) -> AttentionBackend:
    """The fastest backend that can serve it.

    Raises:
        ValueError: none can; the message names the fix.
    """
    if device.type == "cpu":
        if supports(shape) is None:
            return PagedCPUAttention(shape, num_layers, num_blocks)
        if deterministic:
            raise ValueError(f"{supports(shape)}: set deterministic: false to serve it with plain torch operators")
        return GatheredAttention(shape, num_layers, num_blocks, dtype=dtype, device=device)
    from model.attention.varlen_cuda import VarlenCUDAAttention

    return VarlenCUDAAttention(
        shape,
        num_layers,
        num_blocks,
        dtype=dtype,
        device=device,
        deterministic=deterministic,
        allow_untested_gpu=allow_untested_gpu,
    )
