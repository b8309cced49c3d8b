"""A checkpoint's revision: one hash that changes when its configuration or weights do. Reads headers and samples.

The same files have the same revision on every machine: neither paths nor times are in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit on its JSON header."""
_SAMPLE_BYTES = 64


def model_revision(directory: Path) -> str:
    """SHA-256 over config.json, tokenizer.json, every safetensors header and size, and samples of every tensor.

    All weights would take minutes to read, so of each tensor the first, middle and last 64 bytes are: training, merging
    an adapter or quantising anew changes them. What is not noticed is an edit of single weights elsewhere, by hand.

    Returns:
        64 hexadecimal digits.

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
        header = _header(path)
        digest.update(json.dumps([path.name, path.stat().st_size]).encode())
        digest.update(hashlib.sha256(header).digest())
        for sample in _samples(path, header):
            digest.update(sample)
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


def _samples(path: Path, header: bytes) -> Iterator[bytes]:
    """The first, middle and last bytes of each tensor, in the order of the file."""
    try:
        entries: dict[str, Any] = json.loads(header)
        spans = sorted(
            tuple(map(int, entry["data_offsets"])) for name, entry in entries.items() if name != "__metadata__"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path.name}: damaged header") from None
    data = 8 + len(header)
    with path.open("rb") as file:
        for start, end in spans:
            size = min(_SAMPLE_BYTES, end - start)
            for offset in (start, (start + end - size) // 2, end - size):
                yield os.pread(file.fileno(), size, data + offset)
