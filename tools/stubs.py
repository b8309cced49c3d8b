"""Writes the Python stubs beside the .proto files, or says which committed ones differ from what they would be.

python -m tools.stubs            regenerate
python -m tools.stubs --check    compare; exit status 1 if anything is stale
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).parent.parent / "proto"
STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def generate(destination: Path) -> None:
    """Compile every .proto below proto/ into `destination`, and make packages of its folders.

    `proto` itself must stay without an `__init__.py`: another distribution owns that import name.

    Raises:
        subprocess.CalledProcessError: protoc refused a file; its message went to stderr.
    """
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("argosy/**/*.proto"))
    outputs = [f"--{kind}_out={destination}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, *sources], check=True)
    for folder in {Path(source).parent for source in sources}:
        for package in (folder, *folder.parents[:-1]):
            (destination / package / "__init__.py").touch()


def stale_stubs() -> list[str]:
    """Stubs that are missing, left over or different, as sentences."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = _stubs(Path(scratch)), _stubs(PROTO)
    problems = [f"{name}: missing" for name in fresh.keys() - committed.keys()]
    problems += [f"{name}: has no .proto any more" for name in committed.keys() - fresh.keys()]
    problems += [f"{name}: differs" for name in fresh.keys() & committed.keys() if fresh[name] != committed[name]]
    return sorted(problems)


def _stubs(root: Path) -> dict[str, bytes]:
    paths = [path for pattern in STUB_PATTERNS for path in root.glob(f"argosy/**/{pattern}")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        generate(PROTO)
        return 0
    problems = stale_stubs()
    for problem in problems:
        print(f"stale stub: proto/{problem}; run `make proto`", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
