"""A checkpoint's revision: one hash that changes when its configuration or tensors do. Reads headers, never weights."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit on its JSON header."""


def model_revision(directory: Path) -> str:
    """SHA-256 over config.json, tokenizer.json and every safetensors header with its file's size; hexadecimal.

    Values of tensors are not read, which would take minutes for a large model: two checkpoints that differ in values
    alone must differ in configuration, tokenizer or header metadata, as published revisions do in their directories'
    names; an operator who trains in place gives each result its own directory.

    Raises:
        OSError: a file cannot be read.
        ValueError: a safetensors file has no sound header.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        path = directory / name
        if path.exists():
            digest.update(name.encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(json.dumps([path.name, path.stat().st_size]).encode())
        digest.update(hashlib.sha256(_header(path)).digest())
    return digest.hexdigest()


def _header(path: Path) -> bytes:
    """The JSON header: an 8-byte little-endian length, then that many bytes (safetensors format)."""
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) == 8:
            (length,) = struct.unpack("<Q", prefix)
            if length <= _MAX_HEADER_BYTES:
                header = file.read(length)
                if len(header) == length:
                    return header
    raise ValueError(f"{path.name}: not a safetensors file, or cut short")
