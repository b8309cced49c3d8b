"""Holds the ledger against everybody else who counts: its own windows, the engines, the clients. Pure; reads no store.

* What windows hold is exactly what their requests reserved or used.
* The ledger never bills a token that no engine gave to a router. Engines may have given more: what a client did not
  wait for, what followed a stop string, what was computed again after a move.
* A client that got a whole answer counted what it is billed. One that went away may have read less than was accepted
  for it, never more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.ledger.records import Ending, Window

MARKED_AHEAD_TOKENS = 32
"""The most that the row of a crashed router can say too much (`LedgerOptions.ahead_tokens`)."""


_WHOLE = Ending.COMPLETE.value


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison."""

    what: str
    ledger: int
    other: int
    drift: int
    """0 if they agree, as far as they must."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class EngineCount:
    """What the engines of one model gave to routers while the ledger's sums were made."""

    delivered_tokens: int
    lost_epochs: int = 0


@dataclass(frozen=True, slots=True)
class Billed:
    """The ledger's sums of one model, over the same time."""

    completion_tokens: int
    crashed_requests: int = 0


@dataclass(frozen=True, slots=True)
class ClientCount:
    """What a client says of one request."""

    request_id: str
    completion_tokens: int
    prompt_tokens: int | None = None


def against_windows(rows: Iterable[Sequence[Any]], used: Mapping[tuple[str, str, int], int]) -> list[Line]:
    """
    Args:
        rows: (tenant, charges, reserved, prompt, completion, ending) of every request that may have charged a window.
        used: what windows hold, by (tenant, kind, bucket).
    """
    expected: Counter[tuple[str, str, int]] = Counter()
    for tenant, charges, reserved, prompt, completion, ending in rows:
        for kind, bucket in json.loads(charges).items():
            window = Window(kind)
            if window.counts_tokens:
                amount = reserved if ending is None else prompt + completion
            else:
                amount = int(ending is None or window is not Window.CONCURRENT_STREAMS)
            expected[tenant, kind, bucket] += amount
    return [
        Line(f"window {kind} of {tenant}", expected[tenant, kind, bucket], held, held - expected[tenant, kind, bucket])
        for (tenant, kind, bucket), held in sorted(used.items())
    ]


def against_engines(billed: Mapping[str, Billed], engines: Mapping[str, EngineCount]) -> list[Line]:
    """One line a model: tokens that were billed and not made are drift."""
    lines = []
    for model in sorted({*billed, *engines}):
        ours, theirs = billed.get(model, Billed(0)), engines.get(model, EngineCount(0))
        missing = max(0, ours.completion_tokens - theirs.delivered_tokens)
        drift, notes = missing, []
        if ours.crashed_requests:
            drift = max(0, drift - MARKED_AHEAD_TOKENS * ours.crashed_requests)
            notes.append(f"{ours.crashed_requests} requests of crashed routers, billed by their marks")
        if theirs.lost_epochs:
            drift = 0
            notes.append(f"{theirs.lost_epochs} epochs were lost: engines made at least this many")
        if (more := theirs.delivered_tokens - ours.completion_tokens) > 0:
            notes.append(f"{more} made and not billed")
        lines.append(
            Line(f"engines of {model}", ours.completion_tokens, theirs.delivered_tokens, drift, "; ".join(notes))
        )
    return lines


def against_clients(rows: Mapping[str, tuple[str, int, int]], clients: Iterable[ClientCount]) -> list[Line]:
    """One line for all that agree, one for each that does not.

    Args:
        rows: (ending, prompt, completion) by request id.
    """
    agreed_ledger = agreed_client = unread = 0
    lines = []
    for count in clients:
        found = rows.get(count.request_id)
        if found is None:
            unknown = Line(count.request_id, 0, count.completion_tokens, -count.completion_tokens, "not in the ledger")
            lines.append(unknown)
            continue
        ending, prompt, completion = found
        difference = completion - count.completion_tokens
        prompt_difference = 0 if count.prompt_tokens is None else prompt - count.prompt_tokens
        is_fine = difference == 0 or (difference > 0 and ending not in {_WHOLE, ""})
        if is_fine and (prompt_difference == 0 or ending != _WHOLE):
            agreed_ledger += completion
            agreed_client += count.completion_tokens
            unread += difference
            continue
        note = f"{ending or 'open'}; prompt differs by {prompt_difference}" if prompt_difference else ending or "open"
        lines.append(Line(count.request_id, completion, count.completion_tokens, difference or prompt_difference, note))
    note = f"{unread} accepted and not read before the end" if unread else ""
    return [Line("clients", agreed_ledger, agreed_client, 0, note), *lines]
