"""The nouns of metering: what a request may use, what it did use, and the limits it is held to. Knows no database."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.ids import ModelName, RequestId, TenantId

ANONYMOUS = TenantId("anonymous")
"""Tenant of calls without credentials, where those are allowed."""


class Ending(enum.Enum):
    """How a request ended. One that moved between replicas ends like any other; its attempts are counted."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    """The client went away or gave up."""
    EXPIRED = "expired"
    """Its deadline passed."""
    FAILED = "failed"
    """Ended with another status of ours."""
    CRASHED = "crashed"
    """Its router died; settled by another one, or by the next, from the mark written ahead."""


class Window(enum.Enum):
    """What is limited, and over which time."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    TOKENS_PER_DAY = "tokens_per_day"
    TOKENS_PER_MONTH = "tokens_per_month"
    CONCURRENT_STREAMS = "concurrent_streams"

    # Plain attributes: `value` and properties of an enum cost a Python call each, several times a request.
    kind: str
    """The value."""
    counts_tokens: bool

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.counts_tokens = kind.startswith("tokens")

    def bucket(self, now: float) -> int:
        """Number of the window that holds `now` (Unix seconds); windows do not slide. Streams have one for ever."""
        if self is Window.CONCURRENT_STREAMS:
            return 0
        if self is Window.TOKENS_PER_MONTH:
            date = datetime.datetime.fromtimestamp(now, datetime.UTC)
            return date.year * 12 + date.month - 1
        return int(now // (86400 if self is Window.TOKENS_PER_DAY else 60))

    def seconds_left(self, now: float) -> float:
        """Until the next window begins; for streams, when to look again."""
        if self is Window.CONCURRENT_STREAMS:
            return 1.0
        if self is Window.TOKENS_PER_MONTH:
            year, month = divmod(self.bucket(now) + 1, 12)
            return datetime.datetime(year, month + 1, 1, tzinfo=datetime.UTC).timestamp() - now
        period = 86400 if self is Window.TOKENS_PER_DAY else 60
        return period - now % period


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use; None is unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    concurrent_streams: int | None = None
    hard: bool = True
    """Hard limits refuse. Soft ones are only counted and told, and go on while the ledger cannot be reached."""
    _set: tuple[tuple[Window, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        limits = ((window, getattr(self, window.kind)) for window in Window)
        object.__setattr__(self, "_set", tuple(entry for entry in limits if entry[1] is not None))

    def __iter__(self) -> Iterator[tuple[Window, int]]:
        """The limits that are set."""
        return iter(self._set)


NO_LIMITS = Limits(hard=False)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The most that a request can use, and who asks."""

    request_id: RequestId
    model: ModelName
    prompt_tokens: int
    max_completion_tokens: int
    """All choices together."""
    tenant: TenantId = ANONYMOUS
    subject: str = ""
    """Which of the tenant's keys or users asks."""
    region: str = ""
    idempotency_key: str | None = None
    """The tenant's own name for the request: a second one with the same name is refused."""
    limits: Limits = NO_LIMITS
    resumable_until: float = 0.0
    """Unix seconds; if the request ends unfinished it may go on until then, and is not exported before."""
    home: str = ""
    """The region that keeps the tenant's limits, if it is another: only slices of them can be used here."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.max_completion_tokens

    def cost(self, window: Window) -> int:
        """What it takes from a window at first."""
        return self.tokens if window.counts_tokens else 1


@dataclass(frozen=True, slots=True)
class Settlement:
    """What it did use. The prompt counts once, however often the request moved."""

    ending: Ending
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    attempts: int = 1
    """Replicas that it was sent to."""
    reasoning_tokens: int = 0
    """Of the completion."""
    device_seconds: float = 0.0
    """That devices worked for it, as the replicas measured; what was computed again after a move included."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a limit leaves after a reservation."""

    window: Window
    limit: int
    remaining: int
    """Never negative, even beyond a soft limit."""
    reset_seconds: float
    """Until the window ends."""
