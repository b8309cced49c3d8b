"""One replica without Ray for benchmarks, asked as a router asks it. Knows how it is started, not what is measured."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.replicas import replica_spec, running_replica
from support.router_stream import RouterStream, router_stream, spec_of

from model.quantization import Quantization


@dataclass(frozen=True)
class Turn:
    """What one request took."""

    seconds_to_first: float
    seconds: float
    cached_tokens: int
    """Of its prompt."""
    tokens: list[int]

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first."""
        return (len(self.tokens) - 1) / (self.seconds - self.seconds_to_first)


@asynccontextmanager
async def serving(
    model: Path, *, context_length: int, num_blocks: int, prefix_cache: bool, quantization: Quantization = "none"
) -> AsyncIterator[RouterStream]:
    """A replica of one rank with all cores."""
    spec = replica_spec(
        model,
        num_blocks=num_blocks,
        context_length=context_length,
        threads_per_rank=len(os.sched_getaffinity(0)),
        quantization=quantization,
        max_sequences=64,
        prefix_cache=prefix_cache,
    )
    async with running_replica(spec) as replica, router_stream(replica.addresses.service) as router:
        yield router


async def ask(router: RouterStream, prompt: Sequence[int], new_tokens: int, domain: bytes = b"") -> Turn:
    """One greedy answer of so many tokens."""
    begin = time.perf_counter()
    _, answer = await router.submit(spec_of(prompt, new_tokens, seconds=600, cache_domain=domain))
    await answer.has(1)
    first = time.perf_counter()
    await answer.over()
    return Turn(first - begin, time.perf_counter() - begin, answer.cached_prompt_tokens, answer.tokens[0])


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(100, 40_000) for _ in range(count)]
