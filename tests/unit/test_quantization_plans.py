"""`quantization` from argosy.yaml to a plan: what is refused, how ranks are cut, what they will hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config import ArgosyConfig, PeersConfig, parse_config
from cluster.control.plan import plan_region
from cluster.control.topology import Node
from cluster.errors import ConfigurationError
from cluster.ids import Epoch, RegionId
from model.quantization import GROUP

LAPTOP = Node("laptop", "127.0.0.1", cpus=32, gpus=0, cores=8)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 576,
    "intermediate_size": 1504,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "quantization_config": {"quant_method": "mxfp4"},
}


def configuration(store: Path, shape: dict[str, object], **section: object) -> ArgosyConfig:
    (store / "m").mkdir(exist_ok=True)
    (store / "m" / "config.json").write_text(json.dumps(shape))
    return parse_config({"model_store": str(store), "models": [{"name": "m", **section}]})


def test_ranks_are_cut_between_groups_and_hold_less(tmp_path: Path) -> None:
    held = {}
    for quantization in ("none", "int8", "int4"):
        config = configuration(tmp_path, LLAMA, quantization=quantization, tensor_parallel=3)
        (plan,) = plan_region(config, [LAPTOP])
        assert plan.spec(RegionId("r"), Epoch(1), b"x" * 32, PeersConfig()).quantization == quantization
        held[quantization] = sum(rank.weight_bytes for rank in plan.ranks)
        ends = [rank.shard.intermediate.end for rank in plan.ranks]
        assert ends[-1] == 1504
        assert quantization == "none" or all(end % GROUP == 0 for end in ends)
    assert held["int8"] < 0.27 * held["none"]
    assert held["int4"] < 0.19 * held["none"]


def test_other_words_are_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"models\.0\.quantization: .*'none', 'int8' or 'int4'"):
        configuration(tmp_path, LLAMA, quantization="int3")


def test_a_checkpoint_that_is_quantised_already_stays_as_it_is(tmp_path: Path) -> None:
    config = configuration(tmp_path, {**LLAMA, **GPT_OSS}, quantization="int8")
    with pytest.raises(ConfigurationError, match=r"quantization int8: .*already quantised \(mxfp4\); use none"):
        plan_region(config, [LAPTOP])
