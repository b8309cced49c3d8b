"""Every family's logits, of a prompt and of decoded tokens, are transformers' in float32, however the model is cut.

`make test` holds each family against it with all options off and with all on, `make test-models` in every combination.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import SUPPORTED_ARCHITECTURES, ModelConfig, UnsupportedModelError
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from model.registry import ARCHITECTURES
from model.weights.tables import TABLES
from tests.support.family_grid import Changes, variants
from tests.support.tiny_families import save_family
from tests.support.traces import PROMPT, check_logits

DENSE_CUTS = [
    ParallelDims(),
    ParallelDims(2),
    ParallelDims(3),
    ParallelDims(1, 2),
    ParallelDims(1, 3),
    ParallelDims(2, 2),
]
EXPERT_CUTS = [*DENSE_CUTS, ParallelDims(2, 1, 2), ParallelDims(4, 1, 2), ParallelDims(2, 2, 2), ParallelDims(3, 1, 3)]
TP3 = ParallelDims(3)
SMALL = [(name, family, changes) for name, family, changes, is_small in variants() if is_small]
LARGE = [(name, family, changes) for name, family, changes, is_small in variants() if not is_small]


def check(directory: Path, family: str, changes: Changes) -> None:
    reference = save_family(directory, family, **changes)
    has_experts = ModelConfig.from_checkpoint(directory).experts is not None
    check_logits(directory, reference, EXPERT_CUTS if has_experts else DENSE_CUTS, (len(PROMPT), 7))


@pytest.mark.parametrize(("family", "changes"), [row[1:] for row in SMALL], ids=[row[0] for row in SMALL])
def test_logits_equal_transformers(family: str, changes: Changes, tmp_path: Path) -> None:
    check(tmp_path, family, changes)


@pytest.mark.models_long
@pytest.mark.parametrize(("family", "changes"), [row[1:] for row in LARGE], ids=[row[0] for row in LARGE])
def test_logits_equal_transformers_in_every_combination(family: str, changes: Changes, tmp_path: Path) -> None:
    check(tmp_path, family, changes)


@pytest.mark.parametrize("family", ["Llama", "DeepseekV3"])
def test_unlike_ranks_hold_unlike_parts_of_the_same_model(family: str, tmp_path: Path) -> None:
    """Weights as of devices of three speeds: heads, columns, experts and vocabulary are cut unevenly."""
    reference = save_family(tmp_path, family, num_attention_heads=6, num_key_value_heads=6)
    weights = [3.35, 2.04, 0.86]
    heads = [
        shard.heads.query_heads.size for shard in partition(ModelConfig.from_checkpoint(tmp_path), TP3, weights=weights)
    ]
    assert heads == [3, 2, 1]
    check_logits(tmp_path, reference, [TP3], (7,), weights)


def test_other_architectures_are_refused_by_name_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'FalconForCausalLM' is not served; supported: Llama.*DeepseekV3"):
        ModelConfig.from_dict({"architectures": ["FalconForCausalLM"]})
    assert set(ARCHITECTURES) == set(TABLES) == set(SUPPORTED_ARCHITECTURES)
