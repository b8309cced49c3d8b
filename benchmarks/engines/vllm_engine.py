"""vLLM on CPU, float32, greedy, prefix cache off. Runs in an environment of its own. Arguments: MODEL THREADS."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.engines.protocol import Times, difference, serve


def main(directory: str, threads: int) -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
    import vllm

    engine = vllm.LLM(
        directory, dtype="float32", max_model_len=512, max_num_seqs=64, enable_prefix_caching=False, seed=0
    )

    def run(prompts: list[list[int]], new_tokens: int) -> Times:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]

        def seconds(count: int) -> float:
            sampling = vllm.SamplingParams(temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True)
            begin = time.perf_counter()
            engine.generate(inputs, sampling, use_tqdm=False)
            return time.perf_counter() - begin

        return difference(seconds, len(prompts), new_tokens)

    serve(vllm.__version__, run)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
