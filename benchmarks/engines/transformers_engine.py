"""transformers' `generate`, float32, greedy. Arguments: MODEL THREADS."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.engines.protocol import Times, difference, serve


def main(directory: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def run(prompts: list[list[int]], new_tokens: int) -> Times:
        ids = torch.tensor(prompts)

        def seconds(count: int) -> float:
            begin = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                    pad_token_id=0,
                )
            return time.perf_counter() - begin

        return difference(seconds, len(prompts), new_tokens)

    serve(transformers.__version__, run)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
