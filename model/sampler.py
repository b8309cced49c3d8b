"""The next token of each row of logits that are split over tensor ranks. Knows sampling parameters, no sequences.

Rows are drawn by Gumbel-max: the best of logit / temperature + noise, noise fixed by (seed, choice, position, token).
Each rank finds the best of its own tokens, and ranks compare pairs (score, token), the lowest token among equals. Only
rows that cut the distribution (top_k, top_p, min_p) or report log probabilities gather whole rows of logits.
Legend: S rows that sample, V tokens of this rank, W tokens of the whole vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.batch import Int32Array, Sampled, SamplingRow, TokenLogprobs
from model.gumbel import gumbel_noise
from model.kernels import sampling as kernels
from model.kernels.threads import num_threads
from model.parallel.context import TensorGroup
from model.parallel.partition import Span
from model.sampling_params import SamplingParams

_TOKEN_LIMIT = 1 << 24
"""Token ids travel between ranks as float32, which holds whole numbers up to here."""
_FIRST_CANDIDATES = 256
"""top_p looks at this many tokens before it sorts the whole vocabulary."""


class Sampler:
    """Draws tokens on every rank of the last stage; all ranks get the same ones."""

    def __init__(self, vocab: Span, group: TensorGroup) -> None:
        """Collective over `group`: ranks tell each other how many tokens they hold."""
        self._vocab, self._group = vocab, group
        sizes = group.all_gather(torch.tensor([[float(vocab.size)]]), [1] * group.size)
        self._sizes = [int(size) for size in sizes.flatten().tolist()]
        if sum(self._sizes) > _TOKEN_LIMIT:
            raise ValueError(f"a vocabulary of {sum(self._sizes)} tokens is more than the sampler's {_TOKEN_LIMIT}")
        self._threads = num_threads()

    def sample(self, logits_SV: Tensor, rows: tuple[SamplingRow, ...]) -> Sampled:
        """One token a row. `logits_SV` (float32) is changed in place."""
        reported = [i for i, row in enumerate(rows) if row.top_logprobs is not None]
        raw_SW = self._whole(logits_SV, reported)
        for i, row in enumerate(rows):
            self._edit(logits_SV[i], row)
        scores, tokens = self._best(logits_SV, self._vocab.start, rows)
        if self._group.size > 1:
            tokens = self._best_over_ranks(scores, tokens)
        cut = [i for i, row in enumerate(rows) if row.params.filters_vocabulary and not row.params.is_greedy]
        if cut:
            whole_SW = self._whole(logits_SV, cut)
            for row_W, i in zip(whole_SW, cut, strict=True):
                cut_vocabulary(row_W, rows[i].params)
            tokens[cut] = self._best(whole_SW, 0, tuple(rows[i] for i in cut))[1]
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        for row_W, i in zip(raw_SW, reported, strict=True):
            logprobs[i] = _log_probabilities(row_W, int(tokens[i]), rows[i].top_logprobs or 0)
        return Sampled(tokens, tuple(logprobs) if reported else ())

    def _whole(self, logits_SV: Tensor, rows: list[int]) -> Tensor:
        """Copies of some rows over the whole vocabulary."""
        chosen = logits_SV[rows]
        return self._group.all_gather(chosen, self._sizes) if rows and self._group.size > 1 else chosen

    def _best(
        self, logits: Tensor, first: int, rows: tuple[SamplingRow, ...]
    ) -> tuple[npt.NDArray[np.float32], Int32Array]:
        """Score and token of each row's best, among the columns of `logits`: tokens from `first`."""
        if logits.device.type != "cpu":
            return _best_by_torch(logits, first, rows)
        count, width = logits.shape
        scores, tokens = np.empty(count, np.float32), np.empty(count, np.int32)
        inverse = np.array([0.0 if r.params.is_greedy else 1.0 / r.params.temperature for r in rows], np.float32)
        seeds = np.array([r.params.seed & (2**64 - 1) for r in rows], np.uint64)
        choices = np.array([r.choice for r in rows], np.int64)
        positions = np.array([r.position for r in rows], np.int64)
        draws = kernels.Draws(inverse.ctypes.data, seeds.ctypes.data, choices.ctypes.data, positions.ctypes.data)
        address = logits.contiguous().data_ptr()
        kernels.choose(self._threads, address, count, width, first, draws, scores.ctypes.data, tokens.ctypes.data)
        return scores, tokens

    def _best_over_ranks(self, scores: npt.NDArray[np.float32], tokens: Int32Array) -> Int32Array:
        pairs_S2 = torch.from_numpy(np.stack((scores, tokens.astype(np.float32)), 1))
        gathered = self._group.all_gather(pairs_S2, [2] * self._group.size).numpy()
        best_scores, best_tokens = gathered[:, 0], gathered[:, 1]
        for rank in range(1, self._group.size):
            # Ranks hold rising tokens, so a later rank wins only if it is strictly better.
            better = gathered[:, 2 * rank] > best_scores
            best_scores = np.where(better, gathered[:, 2 * rank], best_scores)
            best_tokens = np.where(better, gathered[:, 2 * rank + 1], best_tokens)
        return best_tokens.astype(np.int32)

    def _edit(self, logits_V: Tensor, row: SamplingRow) -> None:
        """Penalties, biases and bans on this rank's tokens, in place."""
        if row.params.has_penalties and row.history is not None:
            self._penalise(logits_V, row.params, row.history, row.num_generated)
        if row.params.logit_bias:
            tokens = np.fromiter(row.params.logit_bias, np.int64, len(row.params.logit_bias))
            biases = np.fromiter(row.params.logit_bias.values(), np.float32, len(row.params.logit_bias))
            inside = self._inside(tokens)
            logits_V[self._local(tokens[inside], logits_V)] += torch.from_numpy(biases[inside]).to(logits_V.device)
        if row.suppressed_token_ids is not None:
            banned = row.suppressed_token_ids.astype(np.int64)
            logits_V[self._local(banned[self._inside(banned)], logits_V)] = float("-inf")
        if row.mask is not None:
            bits = np.unpackbits(row.mask.view(np.uint8), bitorder="little")[self._vocab.start : self._vocab.end]
            allowed = np.zeros(self._vocab.size, np.bool_)
            allowed[: bits.size] = bits
            logits_V.masked_fill_(torch.from_numpy(~allowed).to(logits_V.device), float("-inf"))

    def _penalise(self, logits_V: Tensor, params: SamplingParams, history: Int32Array, num_generated: int) -> None:
        """Repetition (Keskar et al., 2019) over prompt and answer; presence and frequency over the answer."""
        seen = np.unique(history).astype(np.int64)
        index = self._local(seen[self._inside(seen)], logits_V)
        values = logits_V[index]
        penalty = params.repetition_penalty
        logits_V[index] = torch.where(values > 0, values / penalty, values * penalty)
        answer, counts = np.unique(history[history.size - num_generated :], return_counts=True)
        inside = self._inside(answer)
        amounts = params.presence_penalty + params.frequency_penalty * counts[inside].astype(np.float32)
        amounts_tensor = torch.from_numpy(amounts.astype(np.float32)).to(logits_V.device)
        logits_V[self._local(answer[inside].astype(np.int64), logits_V)] -= amounts_tensor

    def _inside(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        return (tokens >= self._vocab.start) & (tokens < self._vocab.end)

    def _local(self, tokens: npt.NDArray[np.int64], like: Tensor) -> Tensor:
        return torch.from_numpy(tokens - self._vocab.start).to(like.device)


def cut_vocabulary(logits_W: Tensor, params: SamplingParams) -> None:
    """Set the logits of tokens that may not be drawn to minus infinity, in place.

    top_k, then min_p and top_p on what is left, at the row's temperature. Tokens equal to the last one kept are kept.
    """
    scaled = logits_W / params.temperature
    floor = torch.tensor(float("-inf"), device=logits_W.device)
    if 0 < params.top_k < scaled.shape[0]:
        floor = torch.topk(scaled, params.top_k).values[-1]
    if params.min_p > 0:
        floor = torch.maximum(floor, scaled.max() + float(np.log(params.min_p)))
    if params.top_p < 1:
        floor = torch.maximum(floor, _top_p_floor(scaled.masked_fill(scaled < floor, float("-inf")), params.top_p))
    logits_W.masked_fill_(scaled < floor, float("-inf"))


def _top_p_floor(scaled_W: Tensor, top_p: float) -> Tensor:
    """The smallest value in the smallest set of tokens whose probabilities sum to at least `top_p`."""
    total = scaled_W.logsumexp(0)
    count = min(_FIRST_CANDIDATES, scaled_W.shape[0])
    while True:
        ordered = torch.topk(scaled_W, count).values
        reached = (ordered - total).exp().cumsum(0) >= top_p
        if bool(reached.any()) or count == scaled_W.shape[0]:
            # Rounding may keep the whole sum below top_p: then every token stays.
            last = int(reached.to(torch.int8).argmax()) if bool(reached.any()) else count - 1
            return ordered[last]
        count = scaled_W.shape[0]


def _best_by_torch(
    logits: Tensor, first: int, rows: tuple[SamplingRow, ...]
) -> tuple[npt.NDArray[np.float32], Int32Array]:
    """As `kernels.sampling.choose`, on any device."""
    scores = logits.float()
    noisy = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    if noisy:
        drawn = [rows[i] for i in noisy]
        temperatures = torch.tensor([row.params.temperature for row in drawn], device=logits.device)
        seeds, choices = [row.params.seed for row in drawn], [row.choice for row in drawn]
        noise = gumbel_noise(first, logits.shape[1], seeds, choices, [r.position for r in drawn], logits.device)
        scores = scores.clone()
        scores[noisy] = scores[noisy] / temperatures[:, None] + noise
    best = scores.max(-1, keepdim=True).values
    columns = torch.arange(logits.shape[1], device=logits.device)
    tokens = torch.where(scores == best, columns, logits.shape[1]).min(-1).values.clamp(max=logits.shape[1] - 1)
    return best[:, 0].cpu().numpy(), (tokens + first).to(torch.int32).cpu().numpy()


def _log_probabilities(logits_W: Tensor, token: int, num_top: int) -> TokenLogprobs:
    logprobs = torch.log_softmax(logits_W.float(), 0)
    top = torch.topk(logprobs, min(num_top, logprobs.shape[0]))
    return TokenLogprobs(float(logprobs[token]), tuple(top.indices.tolist()), tuple(top.values.tolist()))
