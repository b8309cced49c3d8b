"""Fixtures that every folder of the suite may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import default_store
from model.weights.store import pull

# Read when torch is first imported: OpenMP threads that wait soon leave the cores to the suite's other processes.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


# Shells start background jobs with Ctrl-C ignored, and every child inherits that; these tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The default model's checkpoint directory; pulled into the operator's own store if it is not there yet."""
    return pull("smollm2-135m-instruct", default_store(), lambda what, fraction: None)


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever the suite starts keeps its ledgers away from the operator's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARGOSY_STATE", str(tmp_path_factory.mktemp("state")))
        yield
