"""The token embedding and the output head, cut over tensor ranks by tokens. Knows its own span of the vocabulary.

A token outside a rank's span embeds to zeros there, and the sum over ranks is the whole embedding. The head's outputs
stay split: `model.sampler` needs no whole rows to find the best token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels import pointwise, quantised_matmul
from model.layers.integer_linear import IntegerLinear
from model.layers.linear import LinearKernel, PackedLinear, Weight, make_linear
from model.layers.workspace import Workspace
from model.parallel.context import TensorGroup
from model.parallel.partition import Span
from model.weights.quantised import Int8Weight

Table = Tensor | Int8Weight | PackedLinear | IntegerLinear
"""Rows [V, H] of the embedding; a product is that of the head, which is tied to it."""


class ParallelHead:
    """Logits of this rank's tokens. Tied models on one stage share its weight with the embedding."""

    def __init__(self, weight_VH: Weight, workspace: Workspace) -> None:
        self.product: LinearKernel = make_linear(weight_VH, None, workspace, "logits")

    def __call__(self, hidden_SH: Tensor) -> Tensor:
        return self.product(hidden_SH)


class ParallelEmbedding:
    """Hidden states of token ids: [T] int32 to [T, H]."""

    def __init__(self, table: Table, vocab: Span, group: TensorGroup, workspace: Workspace) -> None:
        if isinstance(table, Int8Weight) and workspace.device.type == "cpu":
            table = IntegerLinear(table, None, workspace, "")
        self._table = table
        self._hidden_size = table.shape[1] if isinstance(table, Tensor | Int8Weight) else table.in_features
        self._vocab, self._group, self._workspace = vocab, group, workspace

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        if self._workspace.device.type != "cpu":
            return self._group.all_reduce(self._torch(token_ids_T))
        rows = token_ids_T.shape[0]
        hidden_TH = self._workspace.take("hidden", rows, self._hidden_size)
        table, vocab = self._table, self._vocab
        place = (token_ids_T.data_ptr(), vocab.start, vocab.size, hidden_TH.data_ptr(), rows, self._hidden_size)
        if isinstance(table, IntegerLinear):
            quantised_matmul.embed(table.packed.data_ptr(), table.scales.data_ptr(), *place)
        elif isinstance(table, PackedLinear):
            pointwise.embed(table.packed.data_ptr(), *place, True)
        else:
            assert isinstance(table, Tensor), "an 8-bit table was packed"
            pointwise.embed(table.data_ptr(), *place, False)
        return self._group.all_reduce(hidden_TH)

    def _torch(self, token_ids_T: Tensor) -> Tensor:
        local = token_ids_T.long() - self._vocab.start
        inside = (local >= 0) & (local < self._vocab.size)
        rows_T = torch.where(inside, local, 0)
        if isinstance(self._table, Int8Weight):
            hidden_TH = self._table.expand_rows(rows_T, self._workspace.dtype)
        else:
            assert isinstance(self._table, Tensor), "products are packed for CPUs alone"
            hidden_TH = self._table[rows_T]
        return torch.where(inside[:, None], hidden_TH, 0)
