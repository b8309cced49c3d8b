"""A checkpoint's revision changes with what it computes, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.numpy

from cluster.revision import model_revision
from tests.support.checkpoints import tiny_weights, write_tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny")


def rewrite(checkpoint: Path, name: str, index: int) -> None:
    """Change one weight."""
    weights = tiny_weights()
    weights[name].flat[index] = 2.0
    safetensors.numpy.save_file(weights, checkpoint / "model.safetensors")


def test_copies_have_one_revision_wherever_and_whenever_they_are(checkpoint: Path, tmp_path: Path) -> None:
    before = model_revision(checkpoint)
    copied = tmp_path / "elsewhere" / "another-name"
    shutil.copytree(checkpoint, copied)
    os.utime(copied / "model.safetensors", (1, 1))
    (copied / "README.md").write_text("notes")
    assert model_revision(copied) == before
    assert len(bytes.fromhex(before)) == 32


@pytest.mark.parametrize("name", list(tiny_weights()))
def test_another_training_of_any_one_tensor_is_another_revision(checkpoint: Path, name: str) -> None:
    before = model_revision(checkpoint)
    seen = {before}
    for index in (0, tiny_weights()[name].size // 2, -1):
        rewrite(checkpoint, name, index)
        seen.add(model_revision(checkpoint))
    assert len(seen) == 4


def test_another_configuration_or_tokenizer_is_another_revision(checkpoint: Path) -> None:
    before = model_revision(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    changed = model_revision(checkpoint)
    (checkpoint / "tokenizer.json").write_text('{"version": "2"}')
    assert len({before, changed, model_revision(checkpoint)}) == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "cut short", id="empty"),
        pytest.param(struct.pack("<Q", 50) + b"{}", "cut short", id="cut"),
        pytest.param(struct.pack("<Q", 2**60), "cut short", id="long"),
        pytest.param(struct.pack("<Q", 2) + b"{[", "damaged header", id="not-json"),
        pytest.param(struct.pack("<Q", 9) + b'{"w": {}}', "damaged header", id="no-offsets"),
    ],
)
def test_what_is_not_a_checkpoint_is_named(checkpoint: Path, content: bytes, says: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"model.safetensors: .*{says}"):
        model_revision(checkpoint)
