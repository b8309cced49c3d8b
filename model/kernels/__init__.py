"""Compiled CPU arithmetic (numba, LLVM vectors): knows addresses and sizes, no tensors, layers or batches.

Two rules hold in every kernel. Strict IEEE: no reassociation, so that what is written is what is computed. And the
order in which the terms of one output element are added depends on that element's row alone, never on how many
rows, threads or tiles there are: equal rows give equal bits.

Compiled code is kept in a directory named by a hash over these sources and what they import. Numba's own check looks at
one file at a time and would keep a kernel whose helper in another file has changed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba


def _cache_directory() -> Path:
    """Where compiled kernels of this version of the sources live."""
    here = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for source in [*sorted(here.glob("*.py")), here.parent / "quantization.py"]:
        digest.update(source.read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "argosy" / "kernels" / digest.hexdigest()[:16]


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(_cache_directory())  # type: ignore[attr-defined]  # set at run time
