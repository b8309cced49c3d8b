"""What the prefix cache is worth: conversations that come back with their history, and prompts that begin alike.

    python -m benchmarks prefixes

Figures are medians; ratios are of one run, by turns with the cache and without it. TTFT: time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.in_process import RouterStream, Turn, ask, random_tokens, serving
from cluster.config import default_store

HISTORY, QUESTION, ANSWER, TURNS = 1500, 32, 32, 3
SHARED, OWN, CLIENTS = 1024, 64, 16
CONTEXT, BLOCKS = 2048, 4096


async def conversation(router: RouterStream, rng: random.Random, domain: bytes) -> list[Turn]:
    """A long first message, then questions; each turn brings all that was said so far."""
    said, turns = random_tokens(rng, HISTORY), []
    for _ in range(TURNS):
        turn = await ask(router, said, ANSWER, domain)
        turns.append(turn)
        said = [*said, *turn.tokens, *random_tokens(rng, QUESTION)]
    return turns


async def crowd(router: RouterStream, rng: random.Random, domain: bytes) -> tuple[list[Turn], int]:
    """Clients at once whose prompts share their beginning (a system prompt); their turns, and the prompts' tokens."""
    shared = random_tokens(rng, SHARED)
    prompts = [[*shared, *random_tokens(rng, OWN)] for _ in range(CLIENTS)]
    turns = await asyncio.gather(*(ask(router, prompt, ANSWER, domain) for prompt in prompts))
    return turns, sum(map(len, prompts))


def median_first(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.seconds_to_first for turn in turns)


async def measure(model: Path, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        routers = {
            cached: await stack.enter_async_context(
                serving(model, context_length=CONTEXT, num_blocks=BLOCKS, prefix_cache=cached)
            )
            for cached in (True, False)
        }
        talks: dict[bool, list[list[Turn]]] = {True: [], False: []}
        crowds: dict[bool, list[tuple[list[Turn], int]]] = {True: [], False: []}
        for counted in range(-1, rounds):
            for cached, router in routers.items():
                seed, domain = random.Random(counted), f"round {counted}".encode()
                talk, many = await conversation(router, seed, domain), await crowd(router, seed, domain)
                if counted >= 0:
                    talks[cached].append(talk)
                    crowds[cached].append(many)
    print_conversations(talks)
    print_crowds(crowds)


def print_conversations(talks: dict[bool, list[list[Turn]]]) -> None:
    print(f"conversation: {HISTORY} tokens, then {TURNS - 1} questions of {QUESTION} tokens; answers of {ANSWER}")
    print(f"{'prefix cache':<14}{'turn':>5}{'TTFT ms':>9}{'/ first':>9}{'found tokens':>14}")
    for cached, rounds in talks.items():
        first = median_first([turns[0] for turns in rounds])
        for index in range(TURNS):
            turns = [each[index] for each in rounds]
            seconds, found = median_first(turns), statistics.median(turn.cached_tokens for turn in turns)
            line = f"{'on' if cached else 'off':<14}{index + 1:>5}{seconds * 1e3:>9.0f}{seconds / first:>9.3f}"
            print(f"{line}{found:>14.0f}")
    ratio = statistics.median(turns[1].seconds_to_first / turns[0].seconds_to_first for turns in talks[True])
    verdict = "reached" if ratio <= 0.15 else "missed"
    print(f"goal: the second turn's TTFT is at most 0.15 of the first's; {ratio:.3f}, {verdict}\n")


def print_crowds(crowds: dict[bool, list[tuple[list[Turn], int]]]) -> None:
    print(f"{CLIENTS} clients at once, {SHARED} tokens alike and {OWN} of their own; answers of {ANSWER}")
    print(f"{'prefix cache':<14}{'hit rate':>9}{'TTFT p50 ms':>13}{'all done s':>12}")
    for cached, rounds in crowds.items():
        hits = statistics.median(sum(turn.cached_tokens for turn in turns) / tokens for turns, tokens in rounds)
        first = statistics.median(median_first(turns) for turns, _ in rounds)
        done = statistics.median(max(turn.seconds for turn in turns) for turns, _ in rounds)
        print(f"{'on' if cached else 'off':<14}{hits:>9.1%}{first * 1e3:>13.0f}{done:>12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.model, arguments.rounds))


if __name__ == "__main__":
    main()
