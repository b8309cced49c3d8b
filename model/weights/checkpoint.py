"""What a checkpoint directory holds, read from its safetensors headers. Reads no weights and needs no torch.

Format: github.com/huggingface/safetensors, "Format": 8 bytes little-endian header length, JSON header, data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.weights.safety import PICKLED_SUFFIXES
from model.weights.shard_spec import ShardSpec
from model.weights.tables import spec_for

_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_SERVED_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
"""Bytes of an element."""
_SHOWN = 4  # tensor names in a message


class WeightsError(ValueError):
    """A checkpoint cannot be loaded; the message names the file or tensor and the fix."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor is."""

    file: Path
    dtype: str
    """The format's name: F32, BF16, ..."""
    shape: tuple[int, ...]


def check_weights(directory: Path) -> None:
    """Find out in milliseconds whether a checkpoint can be loaded: every tensor there, whole, of the right shape.

    Raises:
        WeightsError: it cannot; one line with the cause and the fix.
        UnsupportedModelError: config.json describes a model that is not served.
    """
    config = ModelConfig.from_checkpoint(directory)
    match_spec(read_headers(directory), spec_for(config), config)


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor in the directory's safetensors files, by name.

    Raises:
        WeightsError: there are none, a file is missing, damaged or cut short, or a tensor is stored twice.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(directory):
        for name, tensor in _file_tensors(file).items():
            if name in tensors:
                raise WeightsError(f"tensor {name} is in {tensors[name].file.name} and in {file.name}; remove one")
            tensors[name] = tensor
    return tensors


def match_spec(tensors: Mapping[str, StoredTensor], spec: ShardSpec, config: ModelConfig) -> None:
    """Compare what is stored with what the architecture has.

    Raises:
        WeightsError: tensors are missing, left over, of another shape, or of a dtype that is not served.
    """
    expected = spec.checkpoint_shapes(config)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise WeightsError(f"{_listed(missing)} missing from the checkpoint; pull the model anew")
    left_over = [name for name in tensors if name not in expected and not spec.ignores(name)]
    if left_over:
        raise WeightsError(
            f"{_listed(left_over)} left over: {config.architecture} has no such weights; "
            "config.json is of another model, or the checkpoint is (merge adapters into the weights first)"
        )
    rules = spec.checkpoint_tensors(config)
    for name, shape in expected.items():
        tensor, served = tensors[name], rules[name].stored_as
        if tensor.shape != shape:
            raise WeightsError(
                f"tensor {name} in {tensor.file.name} is {list(tensor.shape)}, config.json makes it {list(shape)}; "
                "they are of different models"
            )
        if tensor.dtype not in served:
            raise WeightsError(f"tensor {name} in {tensor.file.name} is {tensor.dtype}; served are {', '.join(served)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"tensor {shown} is" if len(names) == 1 else f"{len(names)} tensors ({shown}) are"


def _weight_files(directory: Path) -> list[Path]:
    """The files that the index names, or all safetensors files where there is no index."""
    index = next(iter(sorted(directory.glob("*.safetensors.index.json"))), None)
    if index is None:
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise WeightsError(_no_weights(directory))
        return files
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index.name} is not a safetensors index ({error}); pull the model anew") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{index.name} names {name!r}, which is not a file of its own directory")
        if not (directory / name).is_file():
            raise WeightsError(f"{name} is missing: {index.name} names it; pull the model anew")
    return [directory / name for name in names]


def _no_weights(directory: Path) -> str:
    pickled = sorted(path.name for path in directory.glob("*") if path.suffix.lower() in PICKLED_SUFFIXES)
    if pickled:
        return (
            f"{directory} holds only {', '.join(pickled[:_SHOWN])}: pickles can run code and are never read; "
            "convert them to safetensors where you trust them (model.save_pretrained)"
        )
    return f"{directory} holds no *.safetensors file; pull the model first"


def _file_tensors(file: Path) -> dict[str, StoredTensor]:
    header, data_bytes = _read_header(file)
    tensors = {}
    end_of_data = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            shape = tuple(int(size) for size in entry["shape"])
            start, end = (int(offset) for offset in entry["data_offsets"])
            dtype = str(entry["dtype"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{file.name}: the header's entry for {name} is damaged; pull the model anew") from error
        itemsize = _SERVED_DTYPES.get(dtype)
        if start < 0 or min(shape, default=0) < 0 or (itemsize and end - start != math.prod(shape) * itemsize):
            raise WeightsError(f"{file.name}: tensor {name} does not fit its own offsets; pull the model anew")
        end_of_data = max(end_of_data, end)
        tensors[name] = StoredTensor(file, dtype, shape)
    if end_of_data != data_bytes:
        problem = "is cut short" if end_of_data > data_bytes else "is longer than its header says"
        raise WeightsError(
            f"{file.name} {problem}: {data_bytes} bytes of tensors, {end_of_data} expected; pull the model anew"
        )
    return tensors


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and how many bytes follow it."""
    try:
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            raw = stream.read(length) if 0 <= length <= _MAX_HEADER_BYTES else b""
    except OSError as error:
        raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from error
    if length < 0 or len(raw) != length:
        raise WeightsError(f"{file.name} is cut short or is not a safetensors file; pull the model anew")
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise WeightsError(f"{file.name} has a damaged header; pull the model anew") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{file.name} has a damaged header; pull the model anew")
    return header, file.stat().st_size - 8 - length
