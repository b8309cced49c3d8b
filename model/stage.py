"""One rank's part of one pipeline stage: layers [start, end), the embedding before the first, the head after the last.

Knows how tensors flow through a pass; not where batches come from, nor what is done with logits. Legend: T packed
tokens, S rows that sample, H hidden size, V tokens of this rank's vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.architectures.interface import Architecture, DecoderLayer, StageParts, Weights
from model.batch import Batch, Int32Array
from model.layers.embedding import ParallelEmbedding, ParallelHead, Table
from model.layers.integer_linear import IntegerLinear
from model.layers.linear import PackedLinear
from model.layers.norm import RMSNorm


class Stage:
    """The layers that this rank holds."""

    def __init__(self, architecture: Architecture, weights: Weights, parts: StageParts) -> None:
        """Takes every weight it needs out of `weights`."""
        shard, config = parts.context.shard, parts.config
        self._parts, self._first, self._last = parts, shard.is_first_stage, shard.is_last_stage
        self._embedding_scale = architecture.embedding_scale(config)
        embedding = weights.pop(architecture.embedding, None)
        if self._last:
            head = weights.pop(architecture.head, None)
            # A tied checkpoint may name only the embedding.
            weight = head if head is not None else embedding
            assert weight is not None, f"the loader gave no {architecture.head}"
            norm = weights.pop(architecture.final_norm) + architecture.norm_offset
            self.norm = RMSNorm(norm, config.rms_norm_eps, parts.workspace)
            self.head = ParallelHead(weight, parts.workspace)
        if self._first:
            table: Table | None = embedding
            head_product = self.head.product if self._last and config.tie_word_embeddings else None
            if isinstance(head_product, PackedLinear | IntegerLinear):
                table = head_product
            assert table is not None, f"the loader gave no {architecture.embedding}"
            self.embedding = ParallelEmbedding(table, shard.vocab, parts.context.tensor_group, parts.workspace)
        self.layers: list[DecoderLayer] = [
            architecture.build_layer(weights, index, index - shard.layers.start, parts)
            for index in range(shard.layers.start, shard.layers.end)
        ]

    def forward(self, batch: Batch) -> Tensor:
        """Run a pass over the layers. Receives from the stage before, if there is one.

        Returns:
            Hidden states [T, H] for the next stage; on the last stage logits [S, V] of the rows that sample.
            Both are valid until the next pass.
        """
        parts, progress = self._parts, self._parts.context.progress
        parts.attention.begin(batch)
        for rotary in (parts.rotary, parts.local_rotary):
            if rotary is not None:
                rotary.reach(int(batch.context_lengths.max()))
        device = parts.workspace.device
        positions_T = torch.from_numpy(batch.positions).to(device)
        if self._first:
            residual_TH = self.embedding(torch.from_numpy(batch.token_ids).to(device))
            if self._embedding_scale != 1.0:
                residual_TH = residual_TH.mul_(self._embedding_scale)
        else:
            progress.bump("receive hidden states")
            residual_TH = parts.context.links.receive(batch.num_tokens, parts.config.hidden_size, parts.workspace.dtype)
        delta_TH: Tensor | None = None
        for index, layer in enumerate(self.layers, self._parts.context.shard.layers.start):
            progress.bump(f"layer {index}")
            delta_TH = layer(residual_TH, delta_TH, positions_T)
        if self._last:
            progress.bump("head")
            return self._logits(residual_TH, delta_TH, batch)
        return residual_TH if delta_TH is None else residual_TH.add_(delta_TH)

    def _logits(self, residual_TH: Tensor, delta_TH: Tensor | None, batch: Batch) -> Tensor:
        """Norm and head over the last token of each row that samples."""
        last_tokens = batch.query_starts[1:][sampling_rows(batch)] - 1
        if not np.array_equal(last_tokens, np.arange(batch.num_tokens)):
            index = torch.from_numpy(last_tokens).long().to(residual_TH.device)
            residual_TH = residual_TH[index]
            delta_TH = None if delta_TH is None else delta_TH[index]
        return self.head(self.norm(residual_TH, delta_TH))


def sampling_rows(batch: Batch) -> Int32Array:
    """[S] indices of the rows that sample."""
    return np.array([row.row for row in batch.sampling], np.int32)
