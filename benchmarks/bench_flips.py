"""How often a row's next token flips when it is computed in other company: this engine's kernels and stock operators.

    python -m benchmarks flips

A text is read twice with the same weights: all its tokens in one pass, as a prompt is, and one token a pass beside
others, as in decoding. Each place's token is chosen greedily, and drawn at temperature 1 with the place's own noise.
"Stock" is transformers on torch's operators: what a replica would promise if equal rows did not give equal bits.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.bench_quantised import BLOCK, GREEDY, WINDOW, load, windows
from cluster.config import default_store
from model.batch import Batch, SamplingRow
from model.gumbel import gumbel_noise
from model.quantization import Quantization
from model.shard import Shard

COMPANY = 4
"""Texts that are decoded together: what a rank's blocks are cut into."""


@dataclass
class Flips:
    """Counts over places."""

    places: int = 0
    changed: int = 0
    """Rows with other bits."""
    greedy: int = 0
    drawn: int = 0

    def compare(self, one_RV: Tensor, other_RV: Tensor, place: int) -> None:
        """The same place of R texts, each row of them once so and once otherwise."""
        differs = (one_RV != other_RV).any(1)
        self.places += len(differs)
        self.changed += int(differs.sum())
        if differs.any():
            one, other = one_RV[differs], other_RV[differs]
            noise = gumbel_noise(0, one.shape[1], [11], [0], [place], torch.device("cpu"))
            self.greedy += int((one.argmax(1) != other.argmax(1)).sum())
            self.drawn += int(((one + noise).argmax(1) != (other + noise).argmax(1)).sum())


def batch_of(texts: list[list[int]], start: int, end: int) -> Batch:
    """Tokens [start, end) of each text, every one a row that samples; each text has its own blocks."""
    size, blocks = end - start, WINDOW // COMPANY // BLOCK
    positions = np.tile(np.arange(start, end, dtype=np.int32), len(texts))
    table = np.arange(len(texts) * blocks, dtype=np.int32).reshape(len(texts), blocks)
    return Batch(
        token_ids=np.array([text[start:end] for text in texts], np.int32).reshape(-1),
        positions=positions,
        query_starts=np.arange(len(positions) + 1, dtype=np.int32),
        context_lengths=positions + 1,
        block_tables=np.repeat(table, size, axis=0),
        sampling=tuple(SamplingRow(row, GREEDY, 0, 0) for row in range(len(positions))),
    )


@torch.inference_mode()
def own(shard: Shard, texts: list[list[int]]) -> Flips:
    length, flips = len(texts[0]), Flips()
    prompts = torch.stack([shard.stage.forward(batch_of([text], 0, length)).clone() for text in texts])
    for place in range(length):
        flips.compare(prompts[:, place], shard.stage.forward(batch_of(texts, place, place + 1)), place)
    return flips


@torch.inference_mode()
def stock(model: transformers.PreTrainedModel, texts: list[list[int]]) -> Flips:
    ids, flips = torch.tensor(texts), Flips()
    prompts = torch.cat([model(ids[i : i + 1]).logits for i in range(len(texts))])
    cache = transformers.DynamicCache()
    for place in range(ids.shape[1]):
        decoded = model(ids[:, place : place + 1], past_key_values=cache).logits[:, 0]
        flips.compare(prompts[:, place], decoded, place)
    return flips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    parser.add_argument("--groups", type=int, default=4, help=f"of {COMPANY} texts of {WINDOW // COMPANY} tokens")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    size = WINDOW // COMPANY
    groups = [
        [window[start : start + size] for start in range(0, WINDOW, size)]
        for window in windows(tokenizer, arguments.groups)
    ]
    kinds: tuple[Quantization, ...] = ("none", "int4")
    readers = {f"argosy, {kind}": (own, load(arguments.model, kind)) for kind in kinds}
    reference = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    readers["stock operators"] = (stock, reference)
    print(f"{'':<18}{'places':>8}{'other bits':>12}{'greedy flips':>14}{'drawn flips':>13}")
    for name, (reader, model) in readers.items():
        total = Flips()
        for texts in groups:
            found = reader(model, texts)
            total = Flips(*(a + b for a, b in zip(vars(total).values(), vars(found).values(), strict=True)))
        print(f"{name:<18}{total.places:>8}{total.changed:>12}{total.greedy:>14}{total.drawn:>13}", flush=True)


if __name__ == "__main__":
    main()
