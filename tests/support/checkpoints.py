"""Writes tiny checkpoints that are complete and sound, for tests of what happens to directories. Knows no tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from model.config import ModelConfig
from model.weights.tables import spec_for

TINY_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def tiny_weights(config: dict[str, object] = TINY_CONFIG) -> dict[str, np.ndarray]:
    """Every tensor that the configuration asks for, of ones."""
    shape_of = ModelConfig.from_dict(config)
    shapes = spec_for(shape_of).checkpoint_shapes(shape_of)
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def write_tiny_checkpoint(directory: Path, **changes: object) -> Path:
    """config.json, an empty tokenizer.json and model.safetensors in a new directory."""
    directory.mkdir(parents=True)
    config = TINY_CONFIG | changes
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    safetensors.numpy.save_file(tiny_weights(config), directory / "model.safetensors")
    return directory
