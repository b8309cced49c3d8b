"""Which architectures are served, by their name in config.json."""

from __future__ import annotations

from model.architectures.interface import Architecture
from model.architectures.llama import LLAMA
from model.config import UnsupportedModelError

ARCHITECTURES: dict[str, Architecture] = {"LlamaForCausalLM": LLAMA}


def find_architecture(name: str) -> Architecture:
    """Raises `UnsupportedModelError` naming those that are served."""
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(f"architecture {name!r} is not served; supported: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
