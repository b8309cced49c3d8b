"""What may enter the model store: safetensors weights and plain text. Reads JSON, never weights, runs nothing.

Formats that can carry code (pickles) and models that need code of their own (`auto_map`) are refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.config import ModelConfig

SERVED_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja")
"""What is taken from a checkpoint, as glob patterns. Everything else stays where it is."""

PICKLED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
"""Weight formats that execute code when they are read."""

OTHER_WEIGHT_SUFFIXES = frozenset({".gguf", ".ggml", ".onnx", ".h5", ".msgpack", ".npz"})

_CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json")


class StoreError(ValueError):
    """A model cannot be pulled or kept. One line that names the cause and the fix."""


def check_names(source: str, names: list[str]) -> None:
    """Refuse a checkpoint by the names of its files, before any of them is fetched or read.

    Raises:
        StoreError: there are no safetensors weights, or config.json or tokenizer.json is missing.
    """
    suffixes = {Path(name).suffix.lower(): name for name in names}
    if ".safetensors" not in suffixes:
        for suffix in sorted(PICKLED_SUFFIXES & suffixes.keys()):
            raise StoreError(
                f"{source}: {suffixes[suffix]} is a pickle, which can run code; only safetensors weights are served. "
                "Convert it where you trust it: model.save_pretrained(DIRECTORY) writes safetensors"
            )
        found = sorted(OTHER_WEIGHT_SUFFIXES & suffixes.keys())
        hint = f"; {suffixes[found[0]]} is not served" if found else ""
        raise StoreError(f"{source}: no *.safetensors weights here{hint}")
    for required in ("config.json", "tokenizer.json"):
        if required not in names:
            raise StoreError(
                f"{source}: {required} is missing; a checkpoint needs config.json, tokenizer.json, *.safetensors"
            )


def check_configuration(source: str, directory: Path) -> None:
    """Refuse a checkpoint by its configuration: remote code, unknown architecture, files outside the directory.

    Raises:
        StoreError: the message names the file and what it asks for.
    """
    for name in _CONFIGURATIONS:
        path = directory / name
        if path.exists() and "auto_map" in read_json(path):
            raise StoreError(f"{source}: {name} has auto_map: the model needs remote code, which is never run")
    for path in directory.glob("*.safetensors.index.json"):
        for shard in set(read_json(path).get("weight_map", {}).values()):
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise StoreError(f"{source}: {path.name} names {shard!r}; only *.safetensors beside it are read")
    try:
        ModelConfig.from_checkpoint(directory)
    except KeyError as error:
        raise StoreError(f"{source}: config.json has no {error.args[0]!r}") from None
    except ValueError as error:
        raise StoreError(f"{source}: {error}") from None


def check_directory(source: str, directory: Path) -> None:
    """Both checks, on a checkpoint that lies on disk.

    Raises:
        StoreError: as `check_names` and `check_configuration`.
    """
    check_names(source, sorted(path.name for path in directory.iterdir()))
    check_configuration(source, directory)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        StoreError: it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path.name}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path.name}: expected a JSON object, got {type(content).__name__}")
    return content
