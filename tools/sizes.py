"""Prints which files and functions are longer than the project aims for. A reminder, not a gate: it always exits 0."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("cluster", "model", "tools", "tests", "benchmarks")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40


def too_long(path: Path) -> Iterator[str]:
    """What is over in one file. A docstring does not count towards its function's length."""
    text = path.read_text()
    where = path.relative_to(ROOT)
    if (lines := text.count("\n")) > MAX_FILE_LINES:
        yield f"{where}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := _length(node)) > MAX_FUNCTION_LINES:
            yield f"{where}:{node.lineno}: {node.name} has {length} lines"


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        length -= docstring.end_lineno - docstring.lineno + 1
    return length


def main() -> None:
    found = [line for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) for line in too_long(path)]
    for line in found:
        print(f"long: {line}")
    print(f"{len(found)} over {MAX_FILE_LINES} lines a file or {MAX_FUNCTION_LINES} a function")


if __name__ == "__main__":
    main()
