"""What the chart renders with each file of values, kept over tests; and how a test runs over all of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.helm import CI_FILES, Object, render

VALUES: list[Path | None] = [None, *CI_FILES]


@cache
def objects(file: Path | None, kuberay: bool = False) -> list[Object]:
    return render(*([file] if file else []), kuberay=kuberay)


def ci(name: str, *, kuberay: bool = False) -> list[Object]:
    return objects(next(file for file in CI_FILES if file.name == f"{name}-values.yaml"), kuberay)


def name_of(file: Path | None) -> str:
    return file.stem if file else "defaults"


def every_way(test: Any) -> Any:
    """With each file of values, and with both ways to have Ray."""
    test = pytest.mark.parametrize("kuberay", [False, True], ids=["statefulsets", "kuberay"])(test)
    return pytest.mark.parametrize("file", VALUES, ids=name_of)(test)


def environment(container: Object) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}
