"""Loading slices of real safetensors files, and refusing what does not fit by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig, UnsupportedModelError
from model.parallel.dims import ParallelDims
from model.parallel.partition import RankShard, partition
from model.weights.checkpoint import WeightsError, check_weights, read_headers
from model.weights.loader import load_stage_weights
from model.weights.tables import spec_for, weight_bytes
from tests.support.ranks import tiny_config

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = spec_for(config).checkpoint_shapes(config)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_config(directory: Path, config: ModelConfig) -> None:
    fields = {
        "architectures": [config.architecture],
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.context_length,
    }
    same = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "tie_word_embeddings")
    fields |= {name: getattr(config, name) for name in (*same, "attention_bias", "mlp_bias")}
    (directory / "config.json").write_text(json.dumps(fields))


def write_checkpoint(directory: Path, config: ModelConfig, weights: dict[str, Tensor], *, num_files: int = 1) -> None:
    """As transformers writes it: one file, or several with an index."""
    write_config(directory, config)
    if num_files == 1:
        save_file(weights, directory / "model.safetensors")
        return
    names = sorted(weights)
    weight_map = {}
    for part in range(num_files):
        file = f"model-{part + 1:05}-of-{num_files:05}.safetensors"
        save_file({name: weights[name] for name in names[part::num_files]}, directory / file)
        weight_map |= dict.fromkeys(names[part::num_files], file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load(
    directory: Path, config: ModelConfig, shard: RankShard, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    return load_stage_weights(
        directory, config, shard, spec_for(config), dtype=dtype, device="cpu", on_progress=lambda loaded, total: None
    )


def real_slots(shard: RankShard, head_dim: int) -> list[int]:
    """Rows of this rank's q_proj that are not padding."""
    places = [slot for slot, head in enumerate(shard.heads.slots) if head is not None]
    return [slot * head_dim + offset for slot in places for offset in range(head_dim)]


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("dims", [ParallelDims(1, 1), ParallelDims(2, 2), ParallelDims(5, 1), ParallelDims(3, 4)])
def test_the_ranks_slices_make_the_whole_again(tmp_path: Path, dims: ParallelDims, num_files: int) -> None:
    config = tiny_config(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    weights = random_weights(config)
    write_checkpoint(tmp_path, config, weights, num_files=num_files)
    shards = partition(config, dims)
    loaded = [load(tmp_path, config, shard) for shard in shards]
    assert set().union(*loaded) == set(weights)
    for name, whole in weights.items():
        parts = [(shard, part[name]) for shard, part in zip(shards, loaded, strict=True) if name in part]
        assert len(parts) == dims.tp, f"{name} must be on one stage"
        projection = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        if projection in ("o_proj", "down_proj") and name.endswith(".bias"):
            assert torch.equal(sum(part for _, part in parts), whole)
        elif projection in ("k_proj", "v_proj"):
            for shard, part in parts:
                kv_heads = shard.heads.kv_heads
                assert torch.equal(part, whole[kv_heads.start * config.head_dim : kv_heads.end * config.head_dim])
        elif projection == "q_proj":
            assert torch.equal(torch.cat([part[real_slots(shard, config.head_dim)] for shard, part in parts]), whole)
        elif projection == "o_proj":
            columns = [part[:, real_slots(shard, config.head_dim)] for shard, part in parts]
            assert torch.equal(torch.cat(columns, dim=1), whole)
        elif projection == "down_proj":
            assert torch.equal(torch.cat([part for _, part in parts], dim=1), whole)
        elif projection in ("gate_proj", "up_proj", "embed_tokens", "lm_head"):
            assert torch.equal(torch.cat([part for _, part in parts]), whole)
        else:
            assert all(torch.equal(part, whole) for _, part in parts), f"{name} is on every rank"


def test_padded_heads_are_zero_rows_and_zero_columns(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=40, num_heads=10, num_kv_heads=2, attention_bias=True)
    write_checkpoint(tmp_path, config, random_weights(config))
    shard = partition(config, ParallelDims(tp=3), weights=[4, 1, 1])[0]
    assert shard.heads.slots[-2:] == (None, None)
    loaded = load(tmp_path, config, shard)
    attention = "model.layers.0.self_attn."
    padding = slice(8 * config.head_dim, 10 * config.head_dim)
    assert loaded[attention + "q_proj.weight"].shape == (40, 40)
    for part in (
        loaded[attention + "q_proj.weight"][padding],
        loaded[attention + "q_proj.bias"][padding],
        loaded[attention + "o_proj.weight"][:, padding],
    ):
        assert part.numel() > 0
        assert not part.any()
    assert sum(tensor.nbytes for name, tensor in loaded.items() if name != HEAD) == weight_bytes(config, shard, 4)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    write_checkpoint(tmp_path, config, weights)
    (whole,) = partition(config, ParallelDims())
    loaded = load(tmp_path, config, whole)
    assert loaded[HEAD] is loaded[EMBEDDING]
    first, last = partition(config, ParallelDims(pp=2))
    assert HEAD not in load(tmp_path, config, first)
    assert EMBEDDING not in load(tmp_path, config, last)
    assert torch.equal(load(tmp_path, config, last)[HEAD], weights[EMBEDDING])
    assert torch.equal(load(tmp_path, config, first)[EMBEDDING], weights[EMBEDDING])


def test_dtype_is_converted_and_memory_is_its_own(tmp_path: Path) -> None:
    config = tiny_config()
    weights = {name: tensor.bfloat16() for name, tensor in random_weights(config).items()}
    write_checkpoint(tmp_path, config, weights)
    (shard,) = partition(config, ParallelDims())
    loaded = load(tmp_path, config, shard)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, tensor in weights.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float())


@pytest.mark.parametrize("dims", [ParallelDims(), ParallelDims(2, 2)])
def test_progress_ends_at_the_planned_bytes(tmp_path: Path, dims: ParallelDims) -> None:
    config = tiny_config()
    write_checkpoint(tmp_path, config, random_weights(config))
    for shard in partition(config, dims):
        seen: list[tuple[int, int]] = []
        load_stage_weights(
            tmp_path,
            config,
            shard,
            spec_for(config),
            dtype=torch.bfloat16,
            device="cpu",
            on_progress=lambda loaded, total, seen=seen: seen.append((loaded, total)),
        )
        total = weight_bytes(config, shard, 2)
        assert seen[-1] == (total, total)
        assert {entry[1] for entry in seen} == {total}
        assert [entry[0] for entry in seen] == sorted({entry[0] for entry in seen})


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: tensor})


NORM = "model.layers.2.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(NORM), f"tensor {NORM} is missing"),
        (
            put("model.layers.4.mlp.up_proj.weight", torch.zeros(2)),
            "tensor model.layers.4.mlp.up_proj.weight is left over",
        ),
        (put("model.layers.0.self_attn.q_proj.bias", torch.zeros(36)), "q_proj.bias is left over: LlamaForCausalLM"),
        (put(NORM, torch.zeros(37)), rf"tensor {NORM} in model.safetensors is \[37\], config.json makes it \[36\]"),
        (put(NORM, torch.zeros(36, dtype=torch.int8)), f"tensor {NORM} in model.safetensors is I8; served are F64"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    config = tiny_config()
    weights = random_weights(config)
    change(weights)
    write_checkpoint(tmp_path, config, weights)
    with pytest.raises(WeightsError, match=message):
        check_weights(tmp_path)
    with pytest.raises(WeightsError, match=message):
        load(tmp_path, config, partition(config, ParallelDims(tp=2))[1])


def test_what_may_be_there_and_is_not_needed_is_ignored(tmp_path: Path) -> None:
    config = tiny_config()
    weights = random_weights(config)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    weights[HEAD] = torch.zeros(3)
    write_checkpoint(tmp_path, config, weights)
    check_weights(tmp_path)
    untied = tiny_config(tie_word_embeddings=False)
    write_config(tmp_path, untied)
    with pytest.raises(WeightsError, match=r"tensor lm_head.weight .* is \[3\]"):
        check_weights(tmp_path)


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    config = tiny_config()
    write_checkpoint(tmp_path, config, {EMBEDDING: random_weights(config)[EMBEDDING]})
    with pytest.raises(
        WeightsError, match=r"37 tensors \(model.layers.0.input_layernorm.weight, .* and 33 more\) are missing"
    ):
        check_weights(tmp_path)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def replace_header(header: Any) -> Callable[[Path], object]:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda file: file.write_bytes(struct.pack("<Q", len(raw)) + raw)


def entry(shape: Any, offsets: Any, dtype: str = "F32") -> dict[str, Any]:
    return {NORM: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "model.safetensors is cut short: .* bytes of tensors, .* expected"),
        (cut_in_the_header, "model.safetensors is cut short or is not a safetensors file"),
        (empty, "model.safetensors is cut short or is not a safetensors file"),
        (append, "model.safetensors is longer than its header says"),
        (replace_header(b"\xff{"), "damaged header"),
        (replace_header([1]), "damaged header"),
        (replace_header({NORM: 5}), f"entry for {NORM} is damaged"),
        (replace_header(entry([1], [0])), f"entry for {NORM} is damaged"),
        (replace_header(entry([-1, -1], [0, 4])), "does not fit its own offsets"),
        (replace_header(entry([36], [0, 4])), "does not fit its own offsets"),
        (replace_header(entry([1], [-4, 0])), "does not fit its own offsets"),
        (lambda file: file.write_bytes(struct.pack("<Q", 1 << 62)), "cut short or is not a safetensors"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    config = tiny_config()
    write_checkpoint(tmp_path, config, random_weights(config))
    damage(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        check_weights(tmp_path)


def test_indexed_files_must_be_there_and_in_the_directory(tmp_path: Path) -> None:
    config = tiny_config()
    write_checkpoint(tmp_path, config, random_weights(config), num_files=3)
    check_weights(tmp_path)
    missing = tmp_path / "model-00002-of-00003.safetensors"
    missing.rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="model-00002-of-00003.safetensors is missing: model.safetensors.index.json"):
        check_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(WeightsError, match="'../secret.safetensors', which is not a file of its own directory"):
        read_headers(tmp_path)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="is not a safetensors index"):
        read_headers(tmp_path)


def test_a_tensor_stored_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(WeightsError, match="tensor x is in a.safetensors and in b.safetensors"):
        read_headers(tmp_path)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    with pytest.raises(WeightsError, match=r"holds no \*.safetensors file"):
        check_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "consolidated.00.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=r"holds only consolidated.00.pth, pytorch_model.bin: pickles can run code"):
        check_weights(tmp_path)


def test_an_architecture_without_a_table_is_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match="no weight table for 'OtherForCausalLM'; there are: LlamaForCausalLM"
    ):
        spec_for(tiny_config(architecture="OtherForCausalLM"))


@pytest.mark.model
def test_the_default_models_checkpoint_fits_its_table(smollm2_dir: Path) -> None:
    check_weights(smollm2_dir)
    config = ModelConfig.from_checkpoint(smollm2_dir)
    shard = partition(config, ParallelDims(tp=4, pp=3))[-1]
    loaded = load(smollm2_dir, config, shard, torch.bfloat16)
    assert sum(tensor.nbytes for tensor in loaded.values()) == weight_bytes(config, shard, 2)
