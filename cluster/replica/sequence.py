"""One request and its choices as the scheduler tracks them: how far each is, what it holds. Decides nothing.

A sequence's life:  FORKING → QUEUED → PREFILL → DECODE → ENDED,  and back to QUEUED by way of PREEMPTED.
A sequence that is PREEMPTED or ENDED keeps slot and blocks until no step in flight names it.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.prefix import BlockKey, child_key
from cluster.replica.plan import ChoiceStart, Request

if TYPE_CHECKING:
    from cluster.replica.residents import Lane


class Phase(enum.Enum):
    """Where a sequence is in its life."""

    FORKING = enum.auto()
    """Waits for another choice of its request to compute the prompt."""
    QUEUED = enum.auto()
    """Waits for a slot, blocks or credit; holds none."""
    PREFILL = enum.auto()
    """Holds a slot; known tokens are still to be computed."""
    DECODE = enum.auto()
    """Holds a slot; every known token but the last sampled one is computed or in flight."""
    PREEMPTED = enum.auto()
    """Gives slot and blocks back once no step names it, then queues again. Its tokens in flight still count."""
    ENDED = enum.auto()
    """Over. Its tokens in flight are thrown away."""


class RequestState:
    """A request that was accepted: what its choices share."""

    __slots__ = (
        "account",
        "cached_prompt_tokens",
        "credit",
        "deadline",
        "first_token_by",
        "key",
        "max_length",
        "min_tokens",
        "needs_permits",
        "num_live",
        "number",
        "patience_ended",
        "patient_until",
        "priority",
        "prompt_length",
        "reported",
        "root",
        "sequences",
        "stop_token_ids",
    )

    def __init__(self, request: Request, root: BlockKey, number: int, patient_until: float) -> None:
        self.key = request.key
        self.prompt_length = len(request.prompt)
        self.max_length = len(request.prompt) + request.max_tokens
        self.min_tokens = request.min_tokens
        self.stop_token_ids = request.stop_token_ids
        self.deadline = request.deadline
        self.first_token_by = request.first_token_by
        self.priority = request.priority
        self.credit = request.credit
        self.needs_permits = request.needs_permits
        self.account = request.cache_domain
        """Who is charged for it."""
        self.root = root
        self.number = number
        """Counts requests in order of arrival."""
        self.patient_until = patient_until
        """Nobody who arrives after this goes before it."""
        self.cached_prompt_tokens: int | None = None
        """Found in the prefix cache when the first choice entered; None until then."""
        self.patience_ended = False
        self.reported = False
        """An event has gone out."""
        self.sequences = tuple(SequenceState(self, start, request.prompt) for start in request.choices)
        self.num_live = len(self.sequences)

    @property
    def is_paused(self) -> bool:
        """No more tokens may be sampled until credit arrives."""
        return self.credit is not None and self.credit <= 0

    def report(self) -> int:
        """An event goes out; returns the prompt tokens found in the cache, which the first event tells."""
        if self.reported:
            return 0
        self.reported = True
        self.first_token_by = math.inf
        return self.cached_prompt_tokens or 0

    def end_patience(self) -> None:
        """It has waited long enough: no class goes before it."""
        self.patience_ended = True
        self.priority = 0


class SequenceState:
    """One choice of a request."""

    __slots__ = (
        "block_keys",
        "blocks",
        "capacity",
        "choice",
        "in_flight",
        "lane",
        "may_sample",
        "next_registered",
        "num_computed",
        "num_unknown",
        "phase",
        "request",
        "slot",
        "ticket",
        "tokens",
    )

    def __init__(self, request: RequestState, start: ChoiceStart, prompt: Sequence[int]) -> None:
        self.request = request
        self.choice = start.index
        self.tokens = [*prompt, *start.emitted]
        """Prompt and generated tokens as far as they are known here."""
        self.block_keys: list[BlockKey] = []
        """Keys of the full blocks of `tokens`, as far as they were asked for."""
        self.phase = Phase.QUEUED
        self.ticket = 0
        """Which entry of the waiting queue is the valid one."""
        self.may_sample = True
        """Nothing outside forbids to sample the next token: see `Request.needs_permits`."""
        self.num_unknown = 0
        """Tokens being sampled in steps in flight."""
        self.in_flight = 0
        """Steps in flight that name this sequence."""
        self.slot = -1
        self.lane: Lane | None = None
        self.blocks: list[int] = []
        self.num_computed = 0
        """Tokens whose keys and values exist once the steps in flight have run."""
        self.capacity = 0
        """Tokens that `blocks` have room for."""
        self.next_registered = 0
        """Tokens that must be known and computed before the next block gets its key."""

    @property
    def rank(self) -> tuple[int, float, int, int]:
        """Who is preempted last: smaller keeps its blocks longer. Like the order of entering, so nobody starves."""
        request = self.request
        return request.priority, min(request.deadline, request.patient_until), request.number, self.choice

    @property
    def remaining(self) -> int:
        """Known tokens still to be computed before this sequence decodes."""
        return len(self.tokens) - self.num_computed

    def keys_of_full_blocks(self, block_size: int) -> list[BlockKey]:
        """Keys of all full blocks of the known tokens, in order."""
        keys, tokens = self.block_keys, self.tokens
        for start in range(len(keys) * block_size, len(tokens) - block_size + 1, block_size):
            parent = keys[-1] if keys else self.request.root
            keys.append(child_key(parent, tokens[start : start + block_size]))
        return keys

    def enter(self, lane: Lane, slot: int, blocks: list[int], num_computed: int, block_size: int) -> None:
        """Take a slot and the blocks for all known tokens, the first `num_computed` of which are computed already."""
        self.phase = Phase.PREFILL
        self.lane, self.slot, self.blocks, self.num_computed = lane, slot, blocks, num_computed
        self.capacity = len(blocks) * block_size
        self.next_registered = num_computed - num_computed % block_size + block_size

    def leave(self) -> None:
        """Hold nothing any more."""
        self.lane, self.slot, self.blocks, self.num_computed, self.capacity = None, -1, [], 0, 0
        self.next_registered = sys.maxsize
