"""Argosy's engine and workers, no Ray, asked as a router asks them. Arguments: MODEL TP PP THREADS QUANTIZATION."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.replicas import replica_spec, running_replica  # noqa: E402
from support.router_stream import RouterStream, router_stream, spec_of  # noqa: E402

from benchmarks.engines.protocol import Times, serve  # noqa: E402
from model.quantization import Quantization  # noqa: E402


async def run(router: RouterStream, prompts: list[list[int]], new_tokens: int) -> Times:
    """All prompts at once; end tokens do not end an answer because no spec names one."""
    begin = time.perf_counter()
    answers = [(await router.submit(spec_of(prompt, new_tokens)))[1] for prompt in prompts]
    await asyncio.gather(*(answer.has(1) for answer in answers))
    first = time.perf_counter()
    already = sum(len(answer.tokens[0]) for answer in answers)
    await asyncio.gather(*(answer.over() for answer in answers))
    end = time.perf_counter()
    rate = (len(prompts) * new_tokens - already) / (end - first)
    return Times(prefill_seconds=first - begin, total_seconds=end - begin, decode_rate=rate)


async def main(model: str, tp: int, pp: int, threads: int, quantization: Quantization) -> None:
    spec = replica_spec(
        Path(model),
        tp=tp,
        pp=pp,
        num_blocks=640,
        context_length=512,
        threads_per_rank=threads,
        quantization=quantization,
        max_sequences=64,
        prefix_cache=False,
    )
    async with running_replica(spec) as replica, router_stream(replica.addresses.service) as router:
        loop = asyncio.get_running_loop()

        def answer(prompts: list[list[int]], new_tokens: int) -> Times:
            return asyncio.run_coroutine_threadsafe(run(router, prompts, new_tokens), loop).result()

        await asyncio.to_thread(serve, f"{quantization} tp={tp} pp={pp}", answer)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]))
