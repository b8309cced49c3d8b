"""What one forward pass works on, as plain arrays: R rows (one a sequence) of T packed tokens.

Knows no torch, no slots, no wire: `cluster.worker.slots` builds it from a `StepInput`, `model.shard` consumes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from model.sampling_params import SamplingParams

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """Everything that the next token of one row depends on besides its logits."""

    row: int
    """Index of the row in the batch."""
    params: SamplingParams
    choice: int
    position: int
    """Number of generated tokens before this one: with seed and choice it fixes the random numbers."""
    history: Int32Array | None = None
    """Prompt and generated tokens, only if a penalty needs them."""
    num_generated: int = 0
    """Of `history`, how many were generated (the last ones)."""
    suppressed_token_ids: Int32Array | None = None
    """Tokens that may not be sampled here."""
    mask: Int32Array | None = None
    """Bitmask of allowed tokens, 32 a word, from a grammar."""
    top_logprobs: int | None = None
    """Alternatives to report; None: no log probabilities."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in order; row r's tokens are `token_ids[query_starts[r]:query_starts[r + 1]]`."""

    token_ids: Int32Array
    """[T]; only read by the first stage."""
    positions: Int32Array
    """[T] position of each token in its sequence."""
    query_starts: Int32Array
    """[R + 1] cumulative token counts."""
    context_lengths: Int32Array
    """[R] tokens whose keys and values exist after this pass, this pass's own included."""
    block_tables: Int32Array
    """[R, max blocks] KV block ids of each row, in order; unused entries are 0."""
    sampling: tuple[SamplingRow, ...] = ()
    """Rows that sample after their last token, in row order; the same on every rank."""
    block_copies: Int32Array = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """[C, 2] (source, destination) block ids to copy before the pass."""

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_rows(self) -> int:
        return int(self.context_lengths.shape[0])


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities of one sampled token under the model's unmodified distribution."""

    logprob: float
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """Result of a pass on the last stage: one entry a `Batch.sampling` row."""

    token_ids: Int32Array
    logprobs: tuple[TokenLogprobs | None, ...] = ()
