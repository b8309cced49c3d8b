"""llama.cpp by its C interface, greedy, all prompts in one context. In its own environment. Arguments: GGUF THREADS.

The high-level class of its Python package serves one sequence; the interface below it takes a batch of many.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
# `benchmarks.peers` leaves the library where it was built.
os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(Path(sys.prefix) / "build" / "bin"))

import llama_cpp as cpp

from benchmarks.engines.protocol import Times, serve

CONTEXT = 512
MOST_TOKENS = 2048
"""Of one call, prompts of several sequences together."""


class Engine:
    """A model, and a context for each number of sequences that was asked for."""

    def __init__(self, path: str, threads: int) -> None:
        cpp.llama_backend_init()
        self._model = cpp.llama_model_load_from_file(path.encode(), cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"{path} cannot be loaded")
        self._vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))
        self._threads, self._contexts = threads, {}
        self._batch = cpp.llama_batch_init(MOST_TOKENS, 0, 1)

    def context(self, sequences: int) -> object:
        if sequences not in self._contexts:
            parameters = cpp.llama_context_default_params()
            parameters.n_ctx = CONTEXT * sequences
            parameters.n_seq_max = sequences
            parameters.n_batch = MOST_TOKENS
            parameters.n_threads = parameters.n_threads_batch = self._threads
            self._contexts[sequences] = cpp.llama_init_from_model(self._model, parameters)
        return self._contexts[sequences]

    def run(self, prompts: list[list[int]], new_tokens: int) -> Times:
        context = self.context(len(prompts))
        cpp.llama_memory_clear(cpp.llama_get_memory(context), True)
        begin = time.perf_counter()
        latest = self._prefill(context, prompts)
        first = time.perf_counter()
        for step in range(1, new_tokens):
            position = len(prompts[0]) + step - 1
            latest = self._decode(context, [(token, position, i, True) for i, token in enumerate(latest)])
        end = time.perf_counter()
        rate = len(prompts) * (new_tokens - 1) / (end - first)
        return Times(prefill_seconds=first - begin, total_seconds=end - begin, decode_rate=rate)

    def _prefill(self, context: object, prompts: list[list[int]]) -> list[int]:
        """The first token of each answer."""
        latest: list[int] = []
        together = max(1, MOST_TOKENS // len(prompts[0]))
        for start in range(0, len(prompts), together):
            entries = [
                (token, position, start + i, position == len(prompt) - 1)
                for i, prompt in enumerate(prompts[start : start + together])
                for position, token in enumerate(prompt)
            ]
            latest += self._decode(context, entries)
        return latest

    def _decode(self, context: object, entries: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """One call over (token, position, sequence, whether it samples); the most probable tokens of those that do."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, samples) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, samples
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if status := cpp.llama_decode(context, batch):
            raise SystemExit(f"llama_decode failed with {status}")
        sampling = [i for i, entry in enumerate(entries) if entry[3]]
        logits = (np.ctypeslib.as_array(cpp.llama_get_logits_ith(context, i), (self._vocabulary,)) for i in sampling)
        return [int(each.argmax()) for each in logits]


def main(path: str, threads: int) -> None:
    serve(f"{cpp.__version__} {Path(path).stem}", Engine(path, threads).run)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
