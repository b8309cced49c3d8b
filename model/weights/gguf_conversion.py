"""Turns a GGUF file into an ordinary checkpoint directory. Knows the order of work; `gguf_families` knows the names.

Weights are expanded to float32. Format: ggml/docs/gguf.md in llama.cpp's repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy

from model.weights.gguf_families import ConversionError as ConversionError
from model.weights.gguf_families import Fields, family_of
from model.weights.gguf_tokenizer import make_tokenizer, tokenizer_settings

OnTensor = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""


def convert(source: Path, destination: Path, on_tensor: OnTensor) -> None:
    """Write config.json, generation_config.json, tokenizer files, chat template and model.safetensors.

    `destination` must exist. Tied embeddings are stored once, without an `lm_head`.

    Raises:
        ConversionError: another architecture or tokenizer, or a tensor that this family does not have.
    """
    reader = gguf.GGUFReader(source)
    fields: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
    family, special_ids = family_of(fields), _special_ids(fields)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = family.config(fields) | {"dtype": "float32", "tie_word_embeddings": tied, **special_ids}
    _write_json(destination / "config.json", config)
    _write_json(destination / "generation_config.json", special_ids)
    make_tokenizer(fields).save(str(destination / "tokenizer.json"))
    settings = tokenizer_settings(fields, config["max_position_embeddings"])
    _write_json(destination / "tokenizer_config.json", settings)
    if template := fields.get("tokenizer.chat_template"):
        (destination / "chat_template.jinja").write_text(template)
    weights: dict[str, np.ndarray] = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        name = family.checkpoint_name(tensor.name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        weights[name] = np.ascontiguousarray(family.weight(name, values, config))
        on_tensor(done, len(reader.tensors))
    weights_file = destination / "model.safetensors"
    safetensors.numpy.save_file(weights, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # the library leaves it readable by its owner alone


def _special_ids(fields: Fields) -> dict[str, int]:
    kinds = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in kinds.items()}
    return {name: token_id for name, token_id in found.items() if token_id is not None}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
