"""Runs every `bench_*.py` of this folder, one after another, each in its own process.

python -m benchmarks [NAME...]     NAME is a file's name without `bench_`; default: all
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent


def main(names: Sequence[str]) -> int:
    known = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    if unknown := sorted(set(names) - set(known)):
        print(f"unknown benchmark: {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or known:
        print(f"\n== {name}", flush=True)
        command = [sys.executable, "-W", "error", "-c", f"from benchmarks.bench_{name} import main; main()"]
        if subprocess.run(command, cwd=FOLDER.parent, check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
