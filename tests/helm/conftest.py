"""Skips what needs `helm` where it cannot be had, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.helm import NoHelmError, helm_program


@pytest.fixture(scope="session", autouse=True)
def helm_tool() -> Path:
    try:
        return helm_program()
    except NoHelmError as error:
        pytest.skip(str(error))
