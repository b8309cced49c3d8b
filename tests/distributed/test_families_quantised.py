"""Quantised checkpoints stay quantised in memory and give transformers' logits on the expanded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig, UnsupportedModelError
from model.parallel.dims import ParallelDims
from model.parallel.partition import PartitionError, partition
from model.weights.checkpoint import WeightsError, check_weights
from model.weights.loader import load_stage_weights
from model.weights.tables import spec_for, weight_bytes
from tests.support.tiny_families import save_family
from tests.support.traces import PROMPT, check_logits

CUTS = [ParallelDims(), ParallelDims(2), ParallelDims(3), ParallelDims(1, 2), ParallelDims(2, 2), ParallelDims(2, 1, 2)]
FP8_BLOCK = 16
"""Heads of 20 rows and experts of 20 columns: ranks begin in the middle of blocks."""


def rewrite(directory: Path, weights: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def save_mxfp4(directory: Path) -> Any:
    """gpt-oss with random blocks and scales; transformers' own function expands them for the reference."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    reference = save_family(directory, "GptOss")
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expanded = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        reference.get_parameter(name).data.copy_(expanded)
    rewrite(directory, weights, {"quant_method": "mxfp4"})
    return reference


def save_fp8(directory: Path) -> Any:
    """DeepSeek-V3 with every product of its layers in 8 bits; the reference has the products block by block."""
    reference = save_family(directory, "DeepseekV3")
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    layers = [name for name, tensor in weights.items() if "layers." in name and tensor.dim() == 2]
    for name in [name for name in layers if not name.endswith("mlp.gate.weight")]:
        rows, columns = weights[name].shape
        stored = (weights[name] * 3).to(torch.float8_e4m3fn)
        scales = torch.rand(-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK), generator=generator) * 0.4 + 0.2
        whole = scales.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)[:rows, :columns]
        expand_into(reference, name, stored.float() * whole)
        weights |= {name: stored, f"{name}_scale_inv": scales}
    rewrite(directory, weights, {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]})
    return reference


def expand_into(reference: Any, name: str, value: Tensor) -> None:
    """Set a weight by its published name; transformers stacks experts, gate above up."""
    head, is_expert, tail = name.partition(".experts.")
    if not is_expert:
        reference.get_parameter(name).data.copy_(value)
        return
    expert, part, _ = tail.split(".")
    stacked = reference.get_parameter(f"{head}.experts.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}").data
    target = stacked[int(expert)]
    if part != "down_proj":
        target = target[: value.shape[0]] if part == "gate_proj" else target[value.shape[0] :]
    target.copy_(value)


@pytest.mark.parametrize("save", [save_mxfp4, save_fp8])
def test_logits_equal_transformers_on_expanded_weights(save: Any, tmp_path: Path) -> None:
    reference = save(tmp_path)
    check_weights(tmp_path)
    check_logits(tmp_path, reference, CUTS, (len(PROMPT), 7))


@pytest.mark.parametrize(("save", "most"), [(save_mxfp4, 0.16), (save_fp8, 0.30)])
def test_a_rank_holds_as_few_bytes_as_are_stored(save: Any, most: float, tmp_path: Path) -> None:
    """Bytes in memory are those that the plan counted, and a small part of float32's."""
    save(tmp_path)
    config = ModelConfig.from_checkpoint(tmp_path)
    shard = partition(config, ParallelDims(2, 1, 2))[1]
    counted: list[tuple[int, int]] = []
    loaded = load_stage_weights(
        tmp_path,
        config,
        shard,
        spec_for(config),
        dtype=torch.float32,
        device="cpu",
        on_progress=lambda done, total: counted.append((done, total)),
    )
    held = sum(tensor.nbytes for tensor in loaded.values())
    assert held == weight_bytes(config, shard, 4) == counted[-1][0] == counted[-1][1]
    small = [name for name in loaded if loaded[name].element_size() == 1]
    scales = [name for name in loaded if "scale" in name]
    elements = sum(loaded[name].numel() * (2 if "_blocks" in name else 1) for name in small if "_scales" not in name)
    assert sum(loaded[name].nbytes for name in {*small, *scales}) <= most * 4 * elements


def test_groups_that_share_a_scale_are_not_cut(tmp_path: Path) -> None:
    save_mxfp4(tmp_path)
    config = ModelConfig.from_checkpoint(tmp_path)  # experts of 96 columns: three groups
    spans = [shard.experts.intermediate for shard in partition(config, ParallelDims(2))]
    assert [(span.start, span.end) for span in spans] == [(0, 64), (64, 96)]
    with pytest.raises(PartitionError, match=r"96 in units of 32 gives 3 parts for 4 ranks; use tp <= 3"):
        partition(config, ParallelDims(4))


def test_other_quantisations_and_dtypes_are_refused(tmp_path: Path) -> None:
    save_fp8(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(UnsupportedModelError, match=r"'gptq' of DeepseekV3ForCausalLM.*mxfp4 of gpt-oss"):
        ModelConfig.from_dict(config | {"quantization_config": {"quant_method": "gptq"}})
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    with pytest.raises(WeightsError, match="left over"):
        check_weights(tmp_path)
