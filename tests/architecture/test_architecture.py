"""The house rules that tools can check: who imports whom, what is never called, and that the map names real files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import banned_calls, sizes

ROOT = Path(__file__).parents[2]


def modules_below(*packages: str) -> list[str]:
    folders = [ROOT / package.replace(".", "/") for package in packages]
    files = [
        path
        for folder in folders
        for path in ([folder.with_suffix(".py")] if folder.with_suffix(".py").exists() else folder.rglob("*.py"))
    ]
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files]
    return sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages in memory after a fresh interpreter imported the modules."""
    code = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {name.split(".")[0] for name in result.stdout.split()}


def test_import_rules_are_kept() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert f"Contracts: {len(contracts)} kept, 0 broken" in result.stdout
    assert {
        "model-stands-alone",
        "roles-talk-by-proto",
        "no-tensors-in-front",
        "ray-at-four-doors",
        "model-layers",
    } <= {contract["id"] for contract in contracts}


def test_the_front_loads_no_tensors_and_no_ray() -> None:
    """A router starts in a second and fits a small machine: what it imports is also what it needs installed."""
    heavy = loaded_by(modules_below("cluster.router", "cluster.rpc", "cluster.config", "cluster.errors"))
    assert heavy & {"torch", "ray", "numba", "transformers", "pytest"} == set()


def test_the_controller_loads_no_tensors() -> None:
    assert loaded_by(modules_below("cluster.control")) & {"torch", "numba", "transformers"} == set()


def test_engine_loads_no_tensors() -> None:
    assert loaded_by(modules_below("cluster.replica")) & {"torch", "numba", "transformers"} == set()


def test_model_loads_no_cluster_and_no_reference_library() -> None:
    loaded = loaded_by(modules_below("model"))
    assert loaded & {"cluster", "ray", "grpc", "argosy", "transformers", "huggingface_hub", "requests"} == set()


def test_nothing_banned_is_called() -> None:
    assert banned_calls.main(banned_calls.FOLDERS) == 0


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "import torch.distributed as dist\ndist.all_gather_object([], 1)",
        "group.broadcast_object_list([])",
        "eval('1')",
        "exec('1')",
        "import jinja2\njinja2.Template('x')",
        "from jinja2 import Environment",
        "import yaml\nyaml.load(f)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "import numpy as np\nnp.load('x')",
    ],
)
def test_each_ban_is_noticed(source: str) -> None:
    assert list(banned_calls.banned_calls(source))


@pytest.mark.parametrize(
    "source",
    [
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        "import yaml\nyaml.safe_load(f)",
        "import torch\ntorch.set_num_threads(1)",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "model.eval()",
        "shard.load(options)",
        "# pickle.load",
    ],
)
def test_the_right_way_is_not_banned(source: str) -> None:
    assert list(banned_calls.banned_calls(source)) == []


def test_every_file_that_the_map_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"[A-Za-z_.][\w./-]*/[\w./-]*\.(?:py|proto|yaml|yml|toml|md|txt)\b", text))
    assert len(named) >= 20, "ARCHITECTURE.md follows a request through the code, so it names many files"
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert missing == []


def test_every_module_says_what_it_knows() -> None:
    import ast

    silent = [
        str(path.relative_to(ROOT))
        for folder in ("cluster", "model", "tools", "benchmarks", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.stat().st_size and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_length_report_counts_code_and_not_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    path = tmp_path / "long.py"
    body = "    x = 1\n" * 41
    words = '    """' + "word\n" * 50 + '    """\n'
    path.write_text(f"def long():\n{body}\n\ndef told():\n{words}    return 1\n" + "\n" * 250)
    assert list(sizes.too_long(path)) == [
        f"long.py: {path.read_text().count(chr(10))} lines",
        "long.py:1: long has 42 lines",
    ]
