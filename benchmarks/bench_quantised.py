"""What smaller weights cost: perplexity and greedy agreement against float32, bytes in memory, and changed rows.

    python -m benchmarks quantised
    python -m benchmarks.bench_quantised --windows 4     less text

Text: the documentation of Python's own language reference (`pydoc_data.topics`, PSF licence), which every Python
carries: the longest topics in turn, cut into windows that do not overlap.

The default model's weights come from a 4-bit file, whose grid int4 keeps exactly. The second half of the table is of
weights that lie on no grid: the same model, with the factors of its norms multiplied into the products behind them.
"""

from __future__ import annotations

import argparse
import math
import pydoc_data.topics
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from cluster.config import default_store
from model.batch import Batch, SamplingRow
from model.config import ModelConfig
from model.parallel.context import single_rank_context
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from model.quantization import Quantization
from model.sampling_params import SamplingParams
from model.shard import Shard, ShardOptions
from model.weights.tables import weight_bytes

WINDOW, BLOCK = 512, 16
KINDS: tuple[Quantization, ...] = ("none", "int8", "int4")
GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class Reading:
    """What a model says after each token of a text: [tokens] log probability of the true one, and its favourite."""

    logprobs: Tensor
    favourites: Tensor

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprobs.mean().item())


def windows(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    topics = sorted(pydoc_data.topics.topics.values(), key=lambda text: (-len(text), text))
    ids = [token for text in topics[: 4 * count] for token in tokenizer.encode(text).ids]
    return [ids[start : start + WINDOW] for start in range(0, count * WINDOW, WINDOW)]


def load(directory: Path, quantization: Quantization) -> Shard:
    config = ModelConfig.from_checkpoint(directory)
    context = single_rank_context(partition(config, ParallelDims())[0])
    options = ShardOptions(directory, "float32", "cpu", WINDOW // BLOCK, BLOCK, True, quantization=quantization)
    return Shard.load(options, context, lambda loaded, total: None)


def read(shard: Shard, texts: Sequence[list[int]]) -> Reading:
    """Every window in one pass that asks for the logits of all its tokens but the last."""
    logprobs, favourites = [], []
    for ids in texts:
        logits_TV = _logits(shard, ids)
        logprobs.append(logits_TV.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0])
        favourites.append(logits_TV.argmax(-1))
    return Reading(torch.cat(logprobs), torch.cat(favourites))


@torch.inference_mode()
def _logits(shard: Shard, ids: list[int]) -> Tensor:
    """[tokens - 1, V]: each token is a row of its own that samples; all rows share the blocks of one sequence."""
    count = len(ids) - 1
    positions = np.arange(count, dtype=np.int32)
    batch = Batch(
        token_ids=np.array(ids[:-1], np.int32),
        positions=positions,
        query_starts=np.arange(count + 1, dtype=np.int32),
        context_lengths=positions + 1,
        block_tables=np.tile(np.arange(WINDOW // BLOCK, dtype=np.int32), (count, 1)),
        sampling=tuple(SamplingRow(row, GREEDY, 0, 0) for row in range(count)),
    )
    return shard.stage.forward(batch).clone()


def off_the_grid(directory: Path, target: Path) -> None:
    """The same Llama, its norms' factors multiplied into the products behind them."""
    for name in ("config.json", "generation_config.json"):
        shutil.copy(directory / name, target)
    weights = load_file(directory / "model.safetensors")
    behind = {
        "input_layernorm": [f"self_attn.{part}_proj" for part in "qkv"],
        "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
    }
    for name in [name for name in weights if name.rpartition("layernorm")[1]]:
        layer, _, norm = name.removesuffix(".weight").rpartition(".")
        for product in behind[norm]:
            weights[f"{layer}.{product}.weight"] = weights[f"{layer}.{product}.weight"] * weights[name]
        weights[name] = torch.ones_like(weights[name])
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, target / "model.safetensors")


def changed_rows(shard: Shard, ids: list[int]) -> int:
    """Logits of a window whose bits differ between one pass over all tokens and one pass a token."""
    whole = _logits(shard, ids)
    changed = 0
    for position in range(len(ids) - 1):
        with torch.inference_mode():
            alone = shard.stage.forward(_one_token(ids[position], position))[0]
        changed += int(not torch.equal(alone, whole[position]))
    return changed


def _one_token(token: int, position: int) -> Batch:
    return Batch(
        token_ids=np.array([token], np.int32),
        positions=np.array([position], np.int32),
        query_starts=np.array([0, 1], np.int32),
        context_lengths=np.array([position + 1], np.int32),
        block_tables=np.arange(WINDOW // BLOCK, dtype=np.int32)[None],
        sampling=(SamplingRow(0, GREEDY, 0, 0),),
    )


def measure(directory: Path, texts: Sequence[list[int]], label: str) -> None:
    config = ModelConfig.from_checkpoint(directory)
    rank = partition(config, ParallelDims())[0]
    reference: Reading | None = None
    for kind in KINDS:
        shard = load(directory, kind)
        reading = read(shard, texts)
        reference = reference or reading
        agreement = (reading.favourites == reference.favourites).float().mean().item()
        size = weight_bytes(config, rank, 4, kind) / 1e6
        rise = reading.perplexity / reference.perplexity - 1
        changed = changed_rows(shard, texts[0][:65])
        line = f"{label:<16}{kind:<6}{size:>8.0f}{reading.perplexity:>12.4f}{rise:>+9.2%}{agreement:>11.2%}"
        print(f"{line}{changed:>9} of 64", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    parser.add_argument("--windows", type=int, default=16)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    texts = windows(tokenizer, arguments.windows)
    print(f"{sum(len(text) - 1 for text in texts)} tokens of Python's language reference, windows of {WINDOW}")
    print(
        "agreement: how often the most probable token is float32's; changed: rows whose bits differ alone and batched"
    )
    print(f"\n{'weights':<16}{'kind':<6}{'MB':>8}{'perplexity':>12}{'rise':>9}{'agreement':>11}{'changed':>9}")
    measure(arguments.model, texts, "as published")
    with tempfile.TemporaryDirectory() as folder:
        off_the_grid(arguments.model, Path(folder))
        measure(Path(folder), texts, "off the grid")


if __name__ == "__main__":
    main()
