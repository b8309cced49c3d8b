"""Finds what must not stand in the code: what turns bytes into code, or builds a shell line. Reads syntax only.

python -m tools.banned_calls [FOLDER...]     exit status 1 if anything was found
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("cluster", "model", "tools")

BANNED_MODULES = {
    "pickle": "runs code when it reads",
    "cPickle": "runs code when it reads",
    "cloudpickle": "runs code when it reads",
    "dill": "runs code when it reads",
    "marshal": "reads code objects",
    "shelve": "is pickle in a file",
    "joblib": "is pickle in a file",
}
BANNED_NAMES = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "torch.load": "is pickle; weights are safetensors",
    "torch.save": "is pickle; weights are safetensors",
    "numpy.load": "may be pickle",
    "yaml.load": "builds any object; use yaml.safe_load",
    "yaml.unsafe_load": "builds any object; use yaml.safe_load",
    "jinja2.Environment": "is not a sandbox; use jinja2.sandbox.ImmutableSandboxedEnvironment",
    "jinja2.Template": "is not a sandbox; use jinja2.sandbox.ImmutableSandboxedEnvironment",
    "os.system": "runs a shell line",
    "os.popen": "runs a shell line",
    "subprocess.getoutput": "runs a shell line",
    "subprocess.getstatusoutput": "runs a shell line",
    "asyncio.create_subprocess_shell": "runs a shell line",
}
BANNED_METHODS = {
    **dict.fromkeys(
        (
            "all_gather_object",
            "broadcast_object_list",
            "gather_object",
            "recv_object_list",
            "scatter_object_list",
            "send_object_list",
        ),
        "pickles what it sends",
    ),
    "create_subprocess_shell": "runs a shell line",
}
"""Attributes that are banned on any object, since syntax does not show what the object is."""


def banned_calls(source: str) -> Iterator[tuple[int, str]]:
    """(line, sentence) for each banned import, name or argument in Python source."""
    tree = ast.parse(source)
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if (found := _banned(node, aliases)) is not None:
            assert isinstance(node, ast.expr | ast.stmt)
            yield node.lineno, found


def _banned(node: ast.AST, aliases: dict[str, str]) -> str | None:
    match node:
        case ast.Import(names=names):
            modules = [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            modules = [module, *(f"{module}.{alias.name}" for alias in names)]
        case ast.Call(keywords=keywords) if any(_is_shell(keyword) for keyword in keywords):
            return "shell=True runs a shell line"
        case ast.Attribute() | ast.Name():
            return _banned_name(node, aliases)
        case _:
            return None
    for module in modules:
        reason = BANNED_MODULES.get(module.split(".")[0]) or BANNED_NAMES.get(module)
        if reason:
            return f"{module} {reason}"
    return None


def _banned_name(node: ast.Attribute | ast.Name, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Attribute) and node.attr in BANNED_METHODS:
        return f"{node.attr} {BANNED_METHODS[node.attr]}"
    name = _dotted(node, aliases)
    return f"{name} {BANNED_NAMES[name]}" if name in BANNED_NAMES else None


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Local name → what it was imported as, so that `import torch as t; t.load` is seen."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return found


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value, aliases)) is not None:
        return f"{owner}.{node.attr}"
    return None


def _is_shell(keyword: ast.keyword) -> bool:
    is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
    return keyword.arg == "shell" and not is_false


def main(folders: Sequence[str]) -> int:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {sentence}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, sentence in banned_calls(path.read_text())
    ]
    for line in found:
        print(f"banned: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or FOLDERS))
