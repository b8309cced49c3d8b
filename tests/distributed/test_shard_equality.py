"""Shards cut tp x pp give the greedy tokens of one process, and those are transformers'. Plain processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from tests.support.passes import generate, one_rank
from tests.support.ranks import Ranks, run_ranks
from tests.support.tiny_llama import save_tiny

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain in two sentences why the sky is blue.",
    "List three prime numbers, then say why 9 is not one.",
]
MORE_QUESTIONS = [
    "How many days are in a leap year?",
    "Name a fruit that is not sweet.",
    "Translate 'good morning' into Spanish.",
    "What does a compiler do?",
    "Write one line of Python that reverses a string.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What is 17 times 3?",
    "Describe a cat to someone who has never seen one.",
    "Why do leaves fall in autumn?",
    "Summarise the story of the tortoise and the hare.",
    "What is the difference between weather and climate?",
    "Suggest a name for a small bakery.",
    "How does a bicycle stay upright?",
    "Write a polite refusal to a party invitation.",
    "What should I pack for a week in the mountains?",
]
FULL = os.environ.get("ARGOSY_FULL_EQUALITY") == "1"
"""The whole of it, 20 prompts x 64 tokens, takes minutes: set this before a release."""
NUM_TOKENS = 64 if FULL else 32


@pytest.fixture(scope="module")
def prompts(smollm2_dir: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    text = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return [tokenizer.encode(text.format(question)).ids for question in QUESTIONS + MORE_QUESTIONS * FULL]


@pytest.fixture(scope="module")
def answers(smollm2_dir: Path, prompts: list[list[int]]) -> list[list[int]]:
    """One process, all prompts in a batch."""
    return generate(one_rank(smollm2_dir), str(smollm2_dir), prompts, NUM_TOKENS, batch_rows=10)


@pytest.mark.model
def test_one_process_equals_transformers(smollm2_dir: Path, prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Fed with the answer, the reference must want each next token: then its own greedy answer is the same."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        assert answer == logits.argmax(-1).tolist()


@pytest.mark.model
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (3, 1), (1, 2), (2, 2)])
def test_shards_equal_one_process(
    tp: int, pp: int, smollm2_dir: Path, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    config = ModelConfig.from_checkpoint(smollm2_dir)
    arguments = (generate, str(smollm2_dir), prompts, NUM_TOKENS, 10)
    with Ranks("shared_memory", ParallelDims(tp, pp), *arguments, config=config, timeout_seconds=120.0) as ranks:
        outcomes = [ranks.outcome(rank, wait_seconds=250.0) for rank in range(tp * pp)]
    for rank in range(tp * (pp - 1), tp * pp):
        assert outcomes[rank] == (answers, None)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (3, 1), (4, 1), (6, 1), (1, 3), (2, 2)])
def test_uneven_cuts_of_a_tiny_model(tp: int, pp: int, tmp_path: Path) -> None:
    """More ranks than KV heads, padded groups, biases that must count once, sizes that do not divide."""
    save_tiny(tmp_path, attention_bias=True, mlp_bias=True, intermediate_size=101, vocab_size=331)
    generator = np.random.default_rng(2)
    prompts = [generator.integers(0, 331, length).tolist() for length in (5, 30, 64)]
    expected = generate(one_rank(tmp_path), str(tmp_path), prompts, 16, 3)
    config = ModelConfig.from_checkpoint(tmp_path)
    results = run_ranks("shared_memory", ParallelDims(tp, pp), generate, str(tmp_path), prompts, 16, 3, config=config)
    assert all(result == expected for result in results[tp * (pp - 1) :])
