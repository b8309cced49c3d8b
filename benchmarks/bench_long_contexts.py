"""How prefill and decoding slow down with the context: one sequence, no prefix cache, float32 and int4 by turns.

    python -m benchmarks long_contexts

Beside the rates: bytes that a decoded token reads (weights, keys, values), and the share of the measured memory rate.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks import limits
from benchmarks.in_process import Turn, ask, random_tokens, serving
from cluster.config import default_store
from model.config import ModelConfig
from model.quantization import Quantization

PROMPTS = (128, 512, 2048, 7168)
ANSWER, BLOCK = 32, 16
KINDS: tuple[Quantization, ...] = ("none", "int4")
NUM_BLOCKS = 2 * (max(PROMPTS) + ANSWER) // BLOCK


def cache_bytes(config: ModelConfig, tokens: int) -> int:
    """float32 keys and values."""
    return 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim * tokens


async def measure(model: Path, rounds: int) -> dict[tuple[int, Quantization], list[Turn]]:
    turns: dict[tuple[int, Quantization], list[Turn]] = {}
    rng = random.Random(0)
    async with AsyncExitStack() as stack:
        routers = {}
        for kind in KINDS:
            start = serving(
                model,
                context_length=max(PROMPTS) + ANSWER,
                num_blocks=NUM_BLOCKS,
                prefix_cache=False,
                quantization=kind,
            )
            routers[kind] = await stack.enter_async_context(start)
        for counted in range(-1, rounds):
            for length in PROMPTS:
                prompt = random_tokens(rng, length)
                for kind, router in routers.items():
                    turn = await ask(router, prompt, ANSWER)
                    if counted >= 0:
                        turns.setdefault((length, kind), []).append(turn)
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    arguments = parser.parse_args()
    config, machine = ModelConfig.from_checkpoint(arguments.model), limits.measure()
    turns = asyncio.run(measure(arguments.model, arguments.rounds))
    print(f"measured: {machine.bytes_per_second / 1e9:.1f} GB/s read; answers of {ANSWER} tokens")
    print(
        f"{'prompt':>7}{'weights':>9}{'TTFT s':>9}{'prefill/s':>11}{'decode/s':>10}{'MB a token':>12}{'of memory':>11}"
    )
    for (length, kind), each in turns.items():
        first = statistics.median(turn.seconds_to_first for turn in each)
        decode = statistics.median(turn.decode_rate for turn in each)
        num_bytes = limits.weight_bytes(config, kind) + cache_bytes(config, length + ANSWER // 2)
        share = decode * num_bytes / machine.bytes_per_second
        line = f"{length:>7}{kind:>9}{first:>9.3f}{length / first:>11.0f}{decode:>10.1f}"
        print(f"{line}{num_bytes / 1e6:>12.0f}{share:>11.1%}")


if __name__ == "__main__":
    main()
