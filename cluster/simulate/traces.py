"""Published request traces as arrivals that a fleet can replay. Knows their files and sessions, no replicas.

Neither trace carries text. Mooncake's names each 512-token prefix block of a prompt by an id, so prompts are rebuilt as
token ids that are equal exactly where the trace says that blocks are; the trace says nothing about sharing below 512
tokens, and answers have no ids, so an answer never becomes a shared prefix. Azure's names nothing: nothing is shared.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import resources

TRACE_BLOCK = 512
"""Tokens of one named block in Mooncake's trace."""

COMMON_SHARE = 0.05
"""A block that more than this share of requests begin with (a system prompt) does not tell one session from another."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace."""

    arrival: float
    """Seconds since the trace began."""
    num_prompt_tokens: int
    num_output_tokens: int
    """Tokens that the answer had; known to the simulated device, never to a policy."""
    block_ids: tuple[int, ...]
    """Identity of every `TRACE_BLOCK` tokens of the prompt, the last, partial one included."""
    session: int
    """Requests of one conversation share it."""

    def prompt(self) -> array[int]:
        """Token ids, built on demand: a whole trace of them would be 600 MB."""
        tokens = array("I")
        for block_id in self.block_ids:
            tokens.extend(array("I", [block_id]) * TRACE_BLOCK)
        del tokens[self.num_prompt_tokens :]
        return tokens


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    name: str
    requests: tuple[TraceRequest, ...]
    resolution: float = 0.0
    """Seconds to which arrivals were rounded."""

    @property
    def seconds(self) -> float:
        return self.requests[-1].arrival - self.requests[0].arrival

    @property
    def rate(self) -> float:
        """Requests a second, as recorded."""
        return len(self.requests) / self.seconds

    def first(self, seconds: float) -> Trace:
        """The requests of the first `seconds`."""
        end = self.requests[0].arrival + seconds
        return replace(self, requests=tuple(request for request in self.requests if request.arrival < end))

    def arrivals(self, rng: random.Random) -> list[float]:
        """An arrival for each request, from 0: rounded ones are spread over the time they were rounded to, in order.

        Ten requests in the same instant every three seconds are how Mooncake's trace was written, not how users come.
        """
        start = self.requests[0].arrival
        return sorted(request.arrival - start + rng.random() * self.resolution for request in self.requests)


def load_mooncake() -> Trace:
    """Mooncake's conversation trace (FAST'25, Apache-2.0): 12,031 requests in 59 minutes."""
    with _open("conversation_trace.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    ids = [tuple(row["hash_ids"]) for row in rows]
    sessions = _sessions(ids)
    return Trace(
        "mooncake",
        tuple(
            TraceRequest(row["timestamp"] / 1000, row["input_length"], max(1, row["output_length"]), block_ids, session)
            for row, block_ids, session in zip(rows, ids, sessions, strict=True)
        ),
        resolution=3.0,
    )


def load_azure() -> Trace:
    """Azure's LLM inference trace of November 2023, conversations (CC-BY 4.0, Splitwise, ISCA'24): 19,366 requests in
    58 minutes. Every request is a session of its own."""
    with _open("conv.csv.gz") as lines:
        rows = list(csv.DictReader(lines))
    start = _seconds(rows[0]["TIMESTAMP"])
    requests = []
    next_block = 0
    for session, row in enumerate(rows):
        num_prompt_tokens = int(row["ContextTokens"])
        num_blocks = -(-num_prompt_tokens // TRACE_BLOCK)
        requests.append(
            TraceRequest(
                _seconds(row["TIMESTAMP"]) - start,
                num_prompt_tokens,
                int(row["GeneratedTokens"]),
                tuple(range(next_block, next_block + num_blocks)),
                session,
            )
        )
        next_block += num_blocks
    return Trace("azure", tuple(requests))


TRACES = {"mooncake": load_mooncake, "azure": load_azure}
"""Readers by name."""


def home_regions(trace: Trace, demand: Sequence[float], rng: random.Random) -> dict[int, int]:
    """Pin every session to a region, at random by `demand` (weights by region index): no public trace has regions."""
    regions = range(len(demand))
    return {
        session: rng.choices(regions, demand)[0] for session in sorted({request.session for request in trace.requests})
    }


def _sessions(ids: Iterable[tuple[int, ...]]) -> list[int]:
    """A session is named by its first block that is not common; a prompt of common blocks alone is its own session."""
    ids = list(ids)
    holders = Counter(block_id for block_ids in ids for block_id in set(block_ids))
    common = {block_id for block_id, count in holders.items() if count > COMMON_SHARE * len(ids)}
    alone = -1
    sessions = []
    for block_ids in ids:
        session = next((block_id for block_id in block_ids if block_id not in common), None)
        if session is None:
            session = alone
            alone -= 1
        sessions.append(session)
    return sessions


def _seconds(timestamp: str) -> float:
    # The file has seven fractional digits, Python reads six.
    return datetime.fromisoformat(timestamp[:26] + "+00:00").timestamp()


@contextlib.contextmanager
def _open(name: str) -> Iterator[io.TextIOBase]:
    with (
        (resources.files("cluster.simulate") / "data" / name).open("rb") as raw,
        gzip.open(raw, "rt", encoding="utf-8") as lines,
    ):
        yield lines
