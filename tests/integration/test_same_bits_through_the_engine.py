"""Streams are bit-equal alone, among 32, and after preemption; equal seeds give equal choices. Real ranks, tiny model.

Log probabilities are compared to the last bit: equal tokens alone could hide small differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from support.replicas import Replica, replica_spec, running_replica
from support.router_stream import GREEDY, Answer, RouterStream, router_stream, sampling, spec_of

from argosy.internal.v1 import control_pb2, replica_pb2
from model.quantization import Quantization
from tests.support.tiny_llama import save_tiny

NUM_TOKENS = 40
DRAWN = sampling(temperature=0.9, top_p=0.95, seed=11)
Row = tuple[dict[int, list[int]], dict[int, list[float]]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny(directory)
    return directory


def run(
    directory: Path,
    scenario: Callable[[Replica, RouterStream], Awaitable[None]],
    quantization: Quantization = "none",
    **engine: int,
) -> None:
    spec = replica_spec(directory, quantization=quantization, max_sequences=40, prefix_cache=False, **engine)

    async def main() -> None:
        async with running_replica(spec) as replica, router_stream(replica.addresses.service) as router:
            async with asyncio.timeout(200):
                await scenario(replica, router)

    asyncio.run(main())


def prompts(count: int) -> list[list[int]]:
    """The first ones are the same for every count."""
    return [np.random.default_rng(i).integers(0, 320, 20 + i * 37 % 70).tolist() for i in range(count)]


def asks(count: int) -> list[replica_pb2.GenerationSpec]:
    """Greedy and drawn by turns."""
    return [
        spec_of(prompt, NUM_TOKENS, top_logprobs=0, sampling=(GREEDY, DRAWN)[i % 2])
        for i, prompt in enumerate(prompts(count))
    ]


def said(answer: Answer) -> Row:
    return answer.tokens, answer.logprobs


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_streams_are_equal_alone_and_among_32(directory: Path, quantization: Quantization) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        alone = [said(await router.generate(ask)) for ask in asks(6)]
        together = await asyncio.gather(*map(router.generate, asks(32)))
        assert max(report.load.running for report in router.reports) >= 24
        assert [said(answer) for answer in together[:6]] == alone

    run(directory, scenario, quantization)


def test_streams_are_equal_after_preemption(directory: Path) -> None:
    """Room for a few sequences only: the others lose their blocks half-way and are computed again as prompts."""

    async def scenario(replica: Replica, router: RouterStream) -> None:
        alone = [said(await router.generate(ask)) for ask in asks(12)]
        together = await asyncio.gather(*map(router.generate, asks(12)))
        assert [said(answer) for answer in together] == alone
        assert replica.engine._scheduler.num_preempted > 0

    run(directory, scenario, num_blocks=24)


def test_four_choices_of_a_seed_come_again(directory: Path) -> None:
    async def scenario(replica: Replica, router: RouterStream) -> None:
        ask = spec_of(prompts(1)[0], NUM_TOKENS, choices=4, top_logprobs=0, sampling=DRAWN)
        first = await router.generate(ask)
        neighbours = asks(8)
        again, *_ = await asyncio.gather(router.generate(ask), *map(router.generate, neighbours))
        assert said(again) == said(first)
        assert len({tuple(tokens) for tokens in first.tokens.values()}) == 4
        assert (await replica.status()).state == control_pb2.REPLICA_STATE_READY

    run(directory, scenario)
