"""Engine and worker processes with a real model: the tokens are those of the reference library, alone and together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.replicas import replica_spec, running_replica
from support.router_stream import Answer, RouterStream, router_stream, sampling, spec_of
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from argosy.internal.v1 import replica_pb2

pytestmark = pytest.mark.model

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at a temperature of",
    "The three primary colours are",
    "In 1969, the first human",
    "A list of prime numbers: 2, 3, 5, 7,",
    "The opposite of hot is",
)
NUM_TOKENS = 12

Greedy = Callable[[list[int], list[int]], list[int]]


@pytest.fixture(scope="module")
def prompts(smollm2_dir: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    # One is long enough that its prefill is cut into chunks.
    return [tokenizer.encode(text).ids for text in (*TEXTS[:7], " ".join(TEXTS) * 4)]


@pytest.fixture(scope="module")
def greedy(smollm2_dir: Path) -> Greedy:
    """What the reference library, fed prompt and answer in one pass, would have chosen at each place of the answer.

    An answer that equals it is the reference's greedy answer, by induction over its places.
    """
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)

    def choose(prompt: list[int], answer: list[int]) -> list[int]:
        with torch.inference_mode():
            logits_TV = model(torch.tensor([prompt + answer])).logits[0]
        return logits_TV[len(prompt) - 1 : -1].argmax(dim=-1).tolist()

    return choose


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_greedy_tokens_equal_the_reference_and_neighbours_do_not_matter(
    smollm2_dir: Path, prompts: list[list[int]], greedy: Greedy, tp: int, pp: int
) -> None:
    spec = replica_spec(
        smollm2_dir, tp=tp, pp=pp, num_blocks=256, context_length=1024, max_sequences=8, max_batch_tokens=96
    )

    async def drawn(router: RouterStream, domain: bytes) -> dict[int, list[int]]:
        noisy = sampling(temperature=0.9, top_p=0.95, seed=11)
        got = await router.generate(spec_of(prompts[0], NUM_TOKENS, choices=2, sampling=noisy, cache_domain=domain))
        return got.tokens

    async def main() -> list[Answer]:
        async with running_replica(spec) as replica:
            async with router_stream(replica.addresses.service) as router:
                alone = await router.generate(spec_of(prompts[-1], NUM_TOKENS, cache_domain=b"alone"))
                drawn_alone = await drawn(router, b"alone")
                together, drawn_together = await asyncio.gather(
                    asyncio.gather(*(router.generate(spec_of(prompt, NUM_TOKENS)) for prompt in prompts)),
                    drawn(router, b""),
                )
        assert together[-1].tokens == alone.tokens
        assert drawn_together == drawn_alone
        assert drawn_alone[0] != drawn_alone[1]
        return together

    for prompt, got in zip(prompts, asyncio.run(main()), strict=True):
        assert got.tokens[0] == greedy(prompt, got.tokens[0])
        assert got.ends == {0: replica_pb2.END_REASON_LENGTH}
