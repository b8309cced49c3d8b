"""What a step costs besides the forward pass: time between two passes of the output rank while decoding a full batch.

Engine, step channel and worker processes are the real ones, without Ray; the model is SmolLM2-135M from the store.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.replicas import replica_spec, running_replica  # noqa: E402
from support.router_stream import router_stream, spec_of  # noqa: E402

from cluster.config import default_store  # noqa: E402

PROMPT_TOKENS = 20


async def decode(directory: Path, tp: int, pp: int, batch: int, tokens: int) -> None:
    """One replica, `batch` answers of `tokens` tokens at once."""
    spec = replica_spec(directory, tp=tp, pp=pp, num_blocks=batch * 16, context_length=256, max_sequences=batch)
    async with running_replica(spec, module="benchmarks.engine_worker") as replica:
        async with router_stream(replica.addresses.service) as router:
            prompts = [list(range(100 + i, 100 + i + PROMPT_TOKENS)) for i in range(batch)]
            await asyncio.gather(*(router.generate(spec_of(prompt, tokens)) for prompt in prompts))


def report(passes: list[tuple[int, int, float, float]], rows: int) -> tuple[float, float, float]:
    """Median milliseconds of a pass, median milliseconds between two, percent of the time that is between."""
    full = [entry for entry in passes if entry[0] == entry[1] == rows]
    inside = [end - begin for _, _, begin, end in full[1:]]
    between = [after[2] - before[3] for before, after in itertools.pairwise(full)]
    share = sum(between) / (sum(between) + sum(inside))
    return statistics.median(inside) * 1e3, statistics.median(between) * 1e3, share * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32, help="sequences decoded at once")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--layout", action="append", help="TPxPP; may be repeated (default: 1x1, 2x1, 1x2)")
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    arguments = parser.parse_args()
    print(f"{'tp x pp':>8} {'rows':>5} {'pass ms':>8} {'between ms':>11} {'outside %':>10}")
    for layout in arguments.layout or ["1x1", "2x1", "1x2"]:
        tp, pp = map(int, layout.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            os.environ["PASSES"] = folder
            asyncio.run(decode(arguments.model, tp, pp, arguments.batch, arguments.tokens))
            passes = json.loads((Path(folder) / f"{pp - 1}-0.json").read_text())
        rows = arguments.batch // pp
        inside, between, share = report(passes, rows)
        print(f"{layout:>8} {rows:>5} {inside:>8.1f} {between:>11.2f} {share:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
