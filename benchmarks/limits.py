"""What this machine could do at best: bytes read a second, multiplications a second, and the tokens that they allow.

Knows a model's shape and no engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from model.config import ModelConfig
from model.quantization import Quantization, integer_bytes

_ROUNDS = 7
_READ_ELEMENTS = 64 << 20
_SQUARE = 1024


@dataclass(frozen=True)
class Machine:
    """The best of some rounds, with torch's threads."""

    bytes_per_second: float
    flops: float
    """float32, a multiplication and an addition counted as two."""


def measure() -> Machine:
    block = torch.ones(_READ_ELEMENTS)
    a, b = torch.randn(_SQUARE, _SQUARE), torch.randn(_SQUARE, _SQUARE)
    reads, products = [], []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        block.sum()
        reads.append(block.nbytes / (time.perf_counter() - begin))
        begin = time.perf_counter()
        for _ in range(5):
            a @ b
        products.append(5 * 2 * _SQUARE**3 / (time.perf_counter() - begin))
    return Machine(max(reads), max(products))


def matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """[outputs, inputs] of every product of a dense model's layers."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = [(heads + 2 * kv_heads, hidden), (hidden, heads), (2 * inner, hidden), (hidden, inner)]
    return layer * config.num_layers


def weight_bytes(config: ModelConfig, quantization: Quantization) -> int:
    """Bytes of all products, the head's too; float32 where they are not made smaller."""
    head = (config.vocab_size, config.hidden_size)
    if quantization == "none":
        return sum(4 * rows * columns for rows, columns in [*matrices(config), head])
    return sum(integer_bytes(quantization, *shape) for shape in matrices(config)) + integer_bytes("int8", *head)


def decode_limit(config: ModelConfig, machine: Machine, quantization: Quantization) -> float:
    """Tokens a second of one sequence: every weight is read once a token."""
    return machine.bytes_per_second / weight_bytes(config, quantization)


def prefill_limit(config: ModelConfig, machine: Machine, prompt_tokens: int) -> float:
    """Prompt tokens a second in float32; only a prompt's last token passes the head. Attention is not counted."""
    weights = sum(rows * columns for rows, columns in matrices(config))
    return machine.flops / (2 * weights + 2 * config.vocab_size * config.hidden_size / prompt_tokens)
