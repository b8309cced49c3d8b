"""Plans from a config.json and an inventory: every "auto" decided, every impossibility refused with a fix."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import ArgosyConfig, PeersConfig, parse_config
from cluster.control.plan import logical_cpus, plan_region, read_shape, settled
from cluster.control.topology import Node
from cluster.cut import cut_replica
from cluster.errors import ConfigurationError
from cluster.ids import Epoch, RegionId
from model.parallel.partition import partition
from model.weights.tables import weight_bytes

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LAPTOP = Node("laptop", "127.0.0.1", cpus=32, gpus=0, cores=8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def configuration(store: Path, **section: object) -> ArgosyConfig:
    return parse_config({"model_store": str(store), "models": [{"name": "m", **section}]})


def test_a_replica_is_planned_rank_by_rank(store: Path) -> None:
    (plan,) = plan_region(configuration(store, tensor_parallel=2, pipeline_parallel=2), [LAPTOP])
    assert plan.replica_id == "m/0"
    assert (plan.device, plan.dtype, plan.collectives, plan.threads_per_rank) == ("cpu", "float32", "shared_memory", 2)
    assert [(rank.shard.coordinates.stage, rank.shard.coordinates.tp_rank) for rank in plan.ranks] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert plan.ranks[0].shard.layers.start == 0
    assert plan.ranks[3].shard.layers.end == 6
    limit = 256 * 2**20
    assert all(0 < rank.kv_bytes <= limit for rank in plan.ranks)
    assert max(rank.kv_bytes for rank in plan.ranks) > 0.99 * limit, "the fullest rank uses what it was given"
    assert plan.kv_tokens == plan.num_blocks * 16


def test_context_is_what_the_checkpoint_has_or_what_the_cache_holds(store: Path) -> None:
    (roomy,) = plan_region(configuration(store), [LAPTOP])
    assert roomy.context_length == 8192
    (tight,) = plan_region(configuration(store, engine={"kv_cache": "4MiB"}), [LAPTOP])
    assert tight.context_length == tight.kv_tokens < 8192


def test_routers_learn_what_the_plan_decided(store: Path) -> None:
    config = configuration(store, engine={"kv_cache": "4MiB"})
    plans = plan_region(config, [LAPTOP])
    (model,) = settled(config, plans).models
    assert (model.device, model.context_length) == ("cpu", plans[0].context_length)
    assert settled(config, []) == config


def test_gpus_are_used_when_there_are_enough_and_change_the_rest(store: Path) -> None:
    nodes = [Node("a", "10.0.0.1", 64, 2, 64), Node("b", "10.0.0.2", 64, 2, 64)]
    cut = {"tensor_parallel": 2, "pipeline_parallel": 2}
    (plan,) = plan_region(configuration(store, **cut, engine={"allow_untested_gpu": True}), nodes)
    assert (plan.device, plan.dtype, plan.collectives) == ("cuda", "bfloat16", "nccl")
    assert [rank.node.node_id for rank in plan.ranks] == ["a", "a", "b", "b"]
    with pytest.raises(ConfigurationError, match=r"set engine\.allow_untested_gpu: true .* or device: cpu"):
        plan_region(configuration(store, **cut), nodes)


def gpu_node(name: str, kind: str) -> Node:
    return Node(name, f"host-{name}", 64, 2, 64, {"ray.io/accelerator-type": kind})


def test_a_slower_kind_of_gpu_gets_fewer_layers_and_ranks_are_told(store: Path) -> None:
    section = {"tensor_parallel": 2, "pipeline_parallel": 2, "engine": {"allow_untested_gpu": True}}
    (even,) = plan_region(configuration(store, **section), [gpu_node("a", "H100"), gpu_node("b", "H100")])
    (uneven,) = plan_region(configuration(store, **section), [gpu_node("a", "H100"), gpu_node("b", "L40S")])
    assert uneven.ranks[-1].shard.layers.size < even.ranks[-1].shard.layers.size
    spec = uneven.spec(RegionId("r"), Epoch(1), b"", PeersConfig())
    shape = read_shape(uneven.section, uneven.directory)
    assert cut_replica(spec, shape) == tuple(rank.shard for rank in uneven.ranks)
    assert cut_replica(dataclasses.replace(spec, speeds=()), shape) != tuple(rank.shard for rank in uneven.ranks)
    assert even.placement.speeds == ()


def test_stages_are_cut_so_that_their_weights_fit(store: Path) -> None:
    """A hundred dense layers, slow and small, then a hundred of experts, quick and large: time alone overfills one."""
    big = SHAPE | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 200,
        "hidden_size": 4096,
        "intermediate_size": 16_384,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_experts": 64,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 512,
        "mlp_only_layers": list(range(100)),
    }
    (store / "m" / "config.json").write_text(json.dumps(big))
    section = {"pipeline_parallel": 2, "engine": {"allow_untested_gpu": True}}
    (plan,) = plan_region(configuration(store, **section), [gpu_node("a", "H100"), gpu_node("b", "H100")])
    shape = read_shape(plan.section, plan.directory)
    shards = tuple(rank.shard for rank in plan.ranks)
    assert max(weight_bytes(shape, shard, 2) for shard in partition(shape, plan.dims)) > 80e9
    assert all(rank.weight_bytes + rank.kv_bytes < 74e9 for rank in plan.ranks)
    assert cut_replica(plan.spec(RegionId("r"), Epoch(1), b"", PeersConfig()), shape) == shards


def test_what_does_not_fit_the_devices_memory_is_refused(store: Path) -> None:
    section = {"engine": {"allow_untested_gpu": True, "kv_cache": "60GiB"}}
    with pytest.raises(ConfigurationError, match=r"stage 0 needs .* host-a has L40Ss of 48.0 GB; raise tensor"):
        plan_region(configuration(store, **section), [gpu_node("a", "L40S")])
    plan_region(configuration(store, **section), [gpu_node("a", "H100")])
    small = replace(LAPTOP, memory_bytes=10**9)
    plan_region(configuration(store, replicas=2), [small])
    with pytest.raises(ConfigurationError, match=r"all replicas: 1\.1 GB .* do not fit 127.0.0.1, which has 1.0 GB"):
        plan_region(configuration(store, replicas=3), [small])


def test_cpu_stages_on_two_nodes_use_gloo(store: Path) -> None:
    nodes = [Node("a", "10.0.0.1", 3, 0, 4), Node("b", "10.0.0.2", 3, 0, 4)]
    (plan,) = plan_region(configuration(store, tensor_parallel=2, pipeline_parallel=2), nodes)
    assert plan.collectives == "gloo"


def test_replicas_share_what_there_is(store: Path) -> None:
    config = configuration(store, replicas=2, pipeline_parallel=3)
    assert logical_cpus(config) == 8
    plans = plan_region(config, [Node("a", "h", logical_cpus(config), 0, 8)])
    assert [plan.replica_id for plan in plans] == ["m/0", "m/1"]
    assert {plan.threads_per_rank for plan in plans} == {1}
    with pytest.raises(ConfigurationError, match=r"replica m/1 cannot be placed: needs 3 stage\(s\)"):
        plan_region(config, [Node("a", "h", 7, 0, 8)])


@pytest.mark.parametrize(
    ("section", "says"),
    [
        pytest.param(
            {"pipeline_parallel": 7}, ["pipeline_parallel 7 is impossible", "6"], id="more-stages-than-layers"
        ),
        pytest.param({"tensor_parallel": 10}, ["tensor_parallel 10", "is impossible", "9"], id="more-ranks-than-heads"),
        pytest.param({"context_length": 9000}, ["context_length 9000", "at most 8192"], id="context-too-long"),
        pytest.param(
            {"context_length": 8000, "engine": {"kv_cache": "4MiB"}}, ["context_length 8000", "kv_cache to"], id="no-kv"
        ),
        pytest.param({"engine": {"kv_cache": "1KiB"}}, ["engine.kv_cache", "at least"], id="kv-tiny"),
        pytest.param({"device": "cuda"}, ["cannot be placed", "0 GPU(s)", "nothing fits"], id="no-gpu"),
        pytest.param({"device": "cpu", "collectives": "nccl"}, ["collectives nccl needs device cuda"], id="nccl-cpu"),
        pytest.param({"dtype": "bfloat16"}, ["dtype bfloat16", "use float32"], id="bfloat16-on-cpu"),
        pytest.param({"path": "absent"}, ["no config.json in absent", "models.path"], id="no-path"),
    ],
)
def test_what_is_impossible_is_one_line_with_a_fix(store: Path, section: dict[str, object], says: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_region(configuration(store, **section), [LAPTOP])
    message = str(caught.value)
    assert "\n" not in message
    for words in says:
        assert words in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"architectures": ["Unheard"]}, "'Unheard' is not served", id="architecture"),
        pytest.param({"auto_map": {}}, "remote code", id="remote-code"),
        pytest.param({"vocab_size": None}, "config.json is damaged", id="damaged"),
    ],
)
def test_checkpoints_that_cannot_be_served(store: Path, change: dict[str, object], says: str) -> None:
    (store / "m" / "config.json").write_text(json.dumps({**SHAPE, **change}))
    with pytest.raises(ConfigurationError, match=says):
        plan_region(configuration(store), [LAPTOP])


def test_a_model_that_was_never_pulled(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="run `argosy pull m`"):
        plan_region(configuration(tmp_path), [LAPTOP])
