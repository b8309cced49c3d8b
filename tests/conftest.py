"""Fixtures that every folder of the suite may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import default_store
from model.weights.store import pull


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The default model's checkpoint directory; pulled into the operator's own store if it is not there yet."""
    return pull("smollm2-135m-instruct", default_store(), lambda what, fraction: None)
