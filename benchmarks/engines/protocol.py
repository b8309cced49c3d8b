"""The protocol that `bench_engine` speaks with each engine, in plain Python: peers run it in environments of their own.

A job is one JSON line {"prompts": [[token id, ...], ...], "new_tokens": n}. The answer is one line with
{"prefill_seconds": until every prompt has its first token, "total_seconds": until every answer has n tokens,
"decode_rate": tokens a second after the last prompt had its first}. A line {"ready": version} comes first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TypedDict


class Times(TypedDict):
    """One job's answer."""

    prefill_seconds: float
    total_seconds: float
    decode_rate: float


def serve(version: str, run: Callable[[list[list[int]], int], Times]) -> None:
    """Answer jobs until the input ends. Whatever the engine itself prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"ready": version}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(run(job["prompts"], job["new_tokens"])), file=answers)


def difference(run: Callable[[int], float], num_prompts: int, new_tokens: int) -> Times:
    """Times of an engine that only answers whole jobs: one run for the first token, one for all of them."""
    first, total = run(1), run(new_tokens)
    return Times(
        prefill_seconds=first, total_seconds=total, decode_rate=num_prompts * (new_tokens - 1) / (total - first)
    )
