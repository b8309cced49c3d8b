"""Writes constraints.txt: the exact version of each package that `argosy[dev]` needs, as this environment has it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
HEADER = """\
# Exact versions of every package of `pip install -e '.[dev]'`. Written by `python -m tools.constraints`.
# Linux, CPU or CUDA: a local label such as +cpu is left out, so that each machine takes its own build.
"""


def closure(name: str, extras: frozenset[str], seen: dict[str, frozenset[str]]) -> Iterator[str]:
    """Canonical names of everything that a distribution needs here, itself not included."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        needed, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if needed in seen and wanted <= seen[needed]:
            continue
        seen[needed] = seen.get(needed, frozenset()) | wanted
        yield needed
        yield from closure(needed, wanted, seen)


def pins() -> list[str]:
    """`name==version` lines, sorted, without Argosy itself."""
    names = set(closure("argosy", frozenset({"dev"}), {})) - {"argosy"}
    return sorted(f"{name}=={Version(distribution(name).version).public}" for name in names)


if __name__ == "__main__":
    CONSTRAINTS.write_text(HEADER + "\n".join(pins()) + "\n")
