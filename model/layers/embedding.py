"""The token embedding and the output head, cut over tensor ranks by tokens. Knows its own span of the vocabulary.

A token outside a rank's span embeds to zeros there, and the sum over ranks is the whole embedding. The head's outputs
stay split: `model.sampler` needs no whole rows to find the best token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import pointwise
from model.layers.linear import LinearKernel, PackedLinear, make_linear
from model.layers.workspace import Workspace
from model.parallel.context import TensorGroup
from model.parallel.partition import Span


class ParallelHead:
    """Logits of this rank's tokens. Tied models on one stage share its weight with the embedding."""

    def __init__(self, weight_VH: Tensor, workspace: Workspace) -> None:
        self.product: LinearKernel = make_linear(weight_VH, None, workspace, "logits")

    def __call__(self, hidden_SH: Tensor) -> Tensor:
        return self.product(hidden_SH)


class ParallelEmbedding:
    """Hidden states of token ids: [T] int32 to [T, H]."""

    def __init__(self, table: Tensor | PackedLinear, vocab: Span, group: TensorGroup, workspace: Workspace) -> None:
        """`table` is this rank's rows [V, H], or the head's packed product if weights are tied."""
        self._packed = isinstance(table, PackedLinear)
        self._table = table.packed if isinstance(table, PackedLinear) else table
        self._hidden_size = table.in_features if isinstance(table, PackedLinear) else table.shape[1]
        self._vocab, self._group, self._workspace = vocab, group, workspace

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        if self._workspace.device.type != "cpu":
            return self._group.all_reduce(self._torch(token_ids_T))
        rows = token_ids_T.shape[0]
        hidden_TH = self._workspace.take("hidden", rows, self._hidden_size)
        table, ids, start = self._table.data_ptr(), token_ids_T.data_ptr(), self._vocab.start
        pointwise.embed(
            table, ids, start, self._vocab.size, hidden_TH.data_ptr(), rows, self._hidden_size, self._packed
        )
        return self._group.all_reduce(hidden_TH)

    def _torch(self, token_ids_T: Tensor) -> Tensor:
        local = token_ids_T.long() - self._vocab.start
        inside = (local >= 0) & (local < self._vocab.size)
        hidden_TH = self._table[torch.where(inside, local, 0)]
        return torch.where(inside[:, None], hidden_TH, 0)
