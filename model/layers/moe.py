"""A mixture of experts: each token is sent to the few that its router chooses. Knows one layer on one rank.

After attention every tensor rank has every token, so each computes its own experts without being sent anything. With
one expert group, the partial sums of all ranks are added up (all-reduce). With several, a rank has something for some
of the tokens only: those rows go to the rank that finishes the token (all-to-all), and finished tokens to all
(all-gather). Rows are added in rank order either way: a token's bits do not depend on the others.
Legend: T tokens, H hidden size, E experts, K experts a token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import ExpertsConfig
from model.kernels.activation import logistic
from model.layers.linear import LinearKernel
from model.layers.mlp import GatedMLP
from model.parallel.context import TensorGroup
from model.parallel.partition import ExpertShard, Span


def route(logits_TE: Tensor, config: ExpertsConfig, correction_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Experts [T, K] of each token and their weights.

    Args:
        correction_E: added to the scores for the choice alone, which balances load (DeepSeek-V3, 2024, section 2.1.2).
    """
    logits_TE = logits_TE.float()
    if config.scoring == "softmax of chosen":
        best = logits_TE.topk(config.top_k, dim=-1)
        return best.indices, best.values.softmax(-1)
    scores_TE = logits_TE.softmax(-1) if config.scoring == "softmax" else _logistic(logits_TE)
    wanted_TE = scores_TE if correction_E is None else scores_TE + correction_E
    if config.num_groups > 1:
        wanted_TE = _in_best_groups(wanted_TE, config)
    experts_TK = wanted_TE.topk(config.top_k, dim=-1).indices
    weights_TK = scores_TE.gather(1, experts_TK)
    if config.normalise:
        # Added up one by one: the order must not depend on how many tokens there are.
        total_T1 = sum(weights_TK.unbind(1)[1:], weights_TK[:, 0])[:, None]
        weights_TK = weights_TK / (total_T1 + (1e-20 if config.scoring == "sigmoid" else 0.0))
    return experts_TK, weights_TK * config.scaling_factor


def _logistic(x_TE: Tensor) -> Tensor:
    if x_TE.device.type != "cpu":
        return x_TE.sigmoid()
    x_TE = x_TE.contiguous()
    y_TE = torch.empty_like(x_TE)
    logistic(x_TE.data_ptr(), y_TE.data_ptr(), *x_TE.shape)
    return y_TE


def _in_best_groups(wanted_TE: Tensor, config: ExpertsConfig) -> Tensor:
    """Minus infinity outside each token's best groups; a group is as good as the sum of its best two experts."""
    tokens = wanted_TE.shape[0]
    grouped_TGE = wanted_TE.view(tokens, config.num_groups, -1)
    best_two = grouped_TGE.topk(2, dim=-1).values
    groups = (best_two[..., 0] + best_two[..., 1]).topk(config.top_groups, dim=-1).indices
    is_out_TG = torch.ones(tokens, config.num_groups, dtype=torch.bool, device=wanted_TE.device)
    is_out_TG.scatter_(1, groups, False)
    return grouped_TGE.masked_fill(is_out_TG[..., None], float("-inf")).view(tokens, -1)


class MixtureOfExperts:
    """x -> sum over chosen experts of weight * expert(x), plus the shared expert."""

    def __init__(
        self,
        router: LinearKernel,
        correction_E: Tensor | None,
        experts: Sequence[GatedMLP],
        shared: GatedMLP | None,
        config: ExpertsConfig,
        shard: ExpertShard,
        group: TensorGroup,
    ) -> None:
        """`experts` are this rank's slices of the experts `shard.experts`."""
        self._router, self._correction, self._experts, self._shared = router, correction_E, experts, shared
        self._config, self._first, self._group = config, shard.experts.start, group
        self._experts_of_rank = shard.experts_of_rank

    def __call__(self, x_TH: Tensor) -> Tensor:
        experts_TK, weights_TK = route(self._router(x_TH), self._config, self._correction)
        partial_TH = self._own_experts(x_TH, experts_TK, weights_TK.to(x_TH.dtype))
        if len(set(self._experts_of_rank)) == 1:
            if self._shared is not None:
                partial_TH += self._shared(x_TH)
            return self._group.all_reduce(partial_TH)
        sent_TR = torch.stack(
            [((experts_TK >= span.start) & (experts_TK < span.end)).any(1) for span in self._experts_of_rank], 1
        )
        summed_TH = sum_over_experts(partial_TH, sent_TR, self._group)
        if self._shared is not None:
            summed_TH += self._group.all_reduce(self._shared(x_TH))
        return summed_TH

    def _own_experts(self, x_TH: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """This rank's part for every token: zeros where it has none of the token's experts."""
        partial_TH = torch.zeros_like(x_TH)
        chosen = set(experts_TK.flatten().tolist())
        for expert in sorted(chosen.intersection(range(self._first, self._first + len(self._experts)))):
            tokens, places = (experts_TK == expert).nonzero(as_tuple=True)
            part_TH = self._experts[expert - self._first](x_TH[tokens])
            partial_TH.index_add_(0, tokens, part_TH * weights_TK[tokens, places, None])
        return partial_TH


def sum_over_experts(partial_TH: Tensor, sent_TR: Tensor, group: TensorGroup) -> Tensor:
    """Sum over ranks of rows [T, H] of which rank r has something only in the tokens `sent_TR[:, r]`.

    Each rank finishes an even share of the tokens.
    """
    tokens, hidden = partial_TH.shape
    cuts = [tokens * rank // group.size for rank in range(group.size + 1)]
    shares = [Span(start, end) for start, end in itertools.pairwise(cuts)]
    counts = [[int(sent_TR[share.start : share.end, sender].sum()) for share in shares] for sender in range(group.size)]
    received = group.all_to_all(partial_TH[sent_TR[:, group.rank]], counts)
    own = shares[group.rank]
    summed = partial_TH.new_zeros(own.size, hidden)
    start = 0
    for sender in range(group.size):
        rows = sent_TR[own.start : own.end, sender]
        summed[rows] += received[start : start + counts[sender][group.rank]]
        start += counts[sender][group.rank]
    whole = group.all_gather(summed.view(1, -1), [share.size * hidden for share in shares])
    return whole.view(tokens, hidden)
