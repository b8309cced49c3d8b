"""Random Llama checkpoints, written by transformers: the reference that our layers are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def save_tiny(directory: Path, **changes: Any) -> LlamaForCausalLM:
    """A random checkpoint in `directory`; weights large enough that a wrong one changes tokens."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    reference = LlamaForCausalLM(LlamaConfig(**(fields | changes))).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    reference.save_pretrained(directory)
    return reference
