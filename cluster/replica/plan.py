"""What goes into the scheduler and what comes out of it, as plain values. Decides nothing.

Rows and events are named tuples because a step makes one of each per sequence, and they are made fastest.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

RequestKey = Hashable
"""Names a request while it lives; the engine uses (connection, stream id)."""


class Refused(Exception):  # noqa: N818 - an answer to the caller, not a failure of ours
    """The request can never run here. The text says which limit it breaks, without quoting its tokens."""


class EndReason(enum.Enum):
    """Why a choice is over; values are those of `EndReason` in replica.proto."""

    STOP = 1
    LENGTH = 2
    DEADLINE = 3


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one replica and the scheduler's few choices."""

    max_batch_tokens: int
    """Most tokens in one step, prefill and decode together."""
    max_sequences: int
    """Slots: most sequences that hold blocks at once."""
    block_size: int
    """Tokens a KV block holds."""
    num_blocks: int
    """KV blocks in the pool."""
    context_length: int
    """Most tokens of prompt and answer together."""
    num_lanes: int = 1
    """Micro-batches that take turns: one a pipeline stage keeps every stage busy."""
    prefix_cache: bool = True
    """Keep the blocks of ended sequences and find equal prefixes in them."""
    model_revision: str = ""
    """Enters the block keys: weights that differ never share blocks."""
    prefill_order: Literal["slack", "arrival"] = "slack"
    """Within a class: least slack first, or first come, first served."""
    patience_seconds: float = 60.0
    """Starvation bound: slack beyond it counts alike, and a request that waited so long joins the first class."""
    fair_quantum_seconds: float = 0.25
    """A tenant goes after another, within a class, once it has had so much more device time."""
    look_ahead_seconds: float = 0.2
    """A step is planned ahead of the lanes' own only while less prefill time than this is in flight: behind more of
    it the round trip that planning ahead hides is noise, but a newcomer would wait for it."""
    prefill_seconds_per_token: float = 0.0
    """First guess of what is then learnt from completed steps; 0 knows nothing."""

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_sequences", "block_size", "num_blocks", "context_length", "num_lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ChoiceStart:
    """One choice of a request, perhaps begun elsewhere: generation goes on after `emitted`."""

    index: int
    emitted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate, as far as scheduling cares."""

    key: RequestKey
    prompt: Sequence[int]
    choices: tuple[ChoiceStart, ...]
    max_tokens: int
    """Most generated tokens of a choice, emitted ones included."""
    min_tokens: int = 0
    """Stop tokens count only after so many generated tokens."""
    stop_token_ids: frozenset[int] = frozenset()
    deadline: float = math.inf
    """Monotonic seconds; nothing is planned from then on."""
    first_token_by: float = math.inf
    """Monotonic seconds by which the first token is wanted. Orders prefills as the deadline does, but ends nothing."""
    priority: int = 0
    """Class: smaller goes first."""
    cache_domain: bytes = b""
    """Only requests of equal domain share blocks."""
    credit: int | None = None
    """Tokens that may be generated before `add_credit`, all choices together. None: no limit."""
    needs_permits: bool = False
    """After each token of a choice the next may be sampled only when `permit` says so: what it may be depends on the
    one before, which must be known first. Each choice begins with a permit."""


class PlannedRow(NamedTuple):
    """One sequence's share of a step."""

    slot: int
    key: RequestKey
    choice: int
    token_ids: tuple[int, ...] | None
    """None: one token, the one that this slot sampled last, which may still be in flight."""
    num_tokens: int
    start_position: int
    new_block_ids: tuple[int, ...]
    """Appended to the slot's block table before the pass."""
    samples: bool
    """A token is sampled after the row's last one."""


@dataclass(frozen=True, slots=True)
class OpenedSlot:
    """A sequence enters a slot: its first row is in the same step and brings the whole block table so far."""

    slot: int
    key: RequestKey
    choice: int
    num_prompt_tokens: int
    history: tuple[int, ...]
    """Prompt and generated tokens known so far."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass. Workers run plans in order, each: close slots, open slots, copy blocks, compute rows."""

    step: int
    """Counts from 1."""
    lane: int
    rows: tuple[PlannedRow, ...]
    opened: tuple[OpenedSlot, ...]
    closed_slots: tuple[int, ...]
    block_copies: tuple[tuple[int, int], ...]
    """(source, destination) blocks."""
    num_prefill_tokens: int
    num_decode_tokens: int
    context_tokens: int
    """Positions that the rows attend to, summed over rows."""


class SequenceEvent(NamedTuple):
    """News of one choice: new tokens, an end, or both."""

    key: RequestKey
    choice: int
    first_index: int
    """Index in the choice of the first of `token_ids`; tokens emitted elsewhere count."""
    token_ids: tuple[int, ...]
    end: EndReason | None
    cached_prompt_tokens: int
    """Prompt tokens found in the prefix cache; only in a request's first event, else 0."""


class StepStatistics(NamedTuple):
    """What a completed step did and how long it took: what step-time coefficients are fitted from."""

    step: int
    lane: int
    num_prefill_tokens: int
    num_decode_tokens: int
    context_tokens: int
    hit_tokens: int
    """Tokens that sequences entering in this step found in the prefix cache."""
    seconds: float
    """Since it was planned or, if later, since the step before it completed."""


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """The fields of `Load` in replica.proto."""

    running: int
    waiting: int
    pending_prefill_tokens: int
    context_tokens: int
    used_blocks: int
    total_blocks: int
    prefill_share: float
    missed_tokens: int
    hit_tokens: int
