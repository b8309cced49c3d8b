"""What a pass needs, against an independent count: torch's FLOP counter over the well-known library's models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from model.parallel.partition import RankShard, partition
from model.probe import measure_peaks
from model.weights.tables import spec_for, weight_bytes
from model.work import Tally, keys_read, pairs_seen, rank_rates

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 4,
    "num_experts_per_tok": 4,  # all of them: how the library deals tokens out is then the same work
}
CASES = [("llama", LLAMA), ("mixtral", MIXTRAL)]


def counted(raw: dict[str, Any], prompt: int, *, cached: int = 0) -> int:
    """What torch counts when the library runs `prompt` tokens after `cached` ones, without computing anything."""
    kind = {"LlamaForCausalLM": "llama", "MixtralForCausalLM": "mixtral"}[raw["architectures"][0]]
    config = transformers.AutoConfig.for_model(kind, **raw, attn_implementation="eager")
    if kind == "mixtral":
        config._experts_implementation = "batched_mm"
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        past = transformers.DynamicCache(config=config)
        with torch.inference_mode():
            if cached:
                model(torch.zeros(1, cached, dtype=torch.long), past_key_values=past)
            counter = FlopCounterMode(display=False)
            with counter:
                model(torch.zeros(1, prompt, dtype=torch.long), past_key_values=past, logits_to_keep=1)
    return counter.get_total_flops()


def ours(raw: dict[str, Any], dims: ParallelDims, prompt: int, *, cached: int = 0) -> float:
    """What all ranks together need for the same."""
    config = ModelConfig.from_dict(raw)
    tally = Tally.of(config)
    tally.add([(cached, prompt)], samples=1)
    shards = partition(config, dims)
    return sum(rank_rates(config, spec_for(config), shard, 4.0).flops(tally) for shard in shards)


@pytest.mark.parametrize(("name", "raw"), CASES)
@pytest.mark.parametrize(("prompt", "cached"), [(64, 0), (1, 1024)])
def test_operations_agree_with_torchs_counter(name: str, raw: dict[str, Any], prompt: int, cached: int) -> None:
    reference = counted(raw, prompt, cached=cached)
    for dims in (ParallelDims(tp=1, pp=1), ParallelDims(tp=2, pp=2)):
        assert ours(raw, dims, prompt, cached=cached) == pytest.approx(reference, rel=0.05)


def test_a_pass_reads_every_weight_of_its_layers_once() -> None:
    """With the head tied to an embedding that stage 0 holds, bytes a pass are the checkpoint's, less the table."""
    config = ModelConfig.from_dict({**LLAMA, "tie_word_embeddings": False})
    table = config.vocab_size * config.hidden_size * 4
    for dims in (ParallelDims(tp=1, pp=1), ParallelDims(tp=3, pp=2)):
        shards = partition(config, dims)
        passes = sum(rank_rates(config, spec_for(config), shard, 4.0).bytes_per_pass for shard in shards)
        held = sum(weight_bytes(config, shard, 4.0) for shard in shards)
        assert passes == pytest.approx(held - table, rel=0.01)


def test_keys_are_read_once_a_sequence() -> None:
    config = ModelConfig.from_dict(LLAMA)
    (shard,) = partition(config, ParallelDims())
    rates, tally = rank_rates(config, spec_for(config), shard, 4.0), Tally.of(config)
    tally.add([(99, 1), (49, 1)], samples=2)
    kv = 2 * 3 * 64 * 4 * 30
    assert rates.memory_bytes(tally) - rates.bytes_per_pass == pytest.approx((100 + 50 + 2) * kv)


def test_decodes_are_added_up_alike_with_and_without_their_rows() -> None:
    config = ModelConfig.from_dict(MIXTRAL)
    whole, summed = Tally.of(config), Tally.of(config)
    whole.add([(99, 1), (49, 1)], samples=2)
    summed.add_decodes(2, 150)
    assert summed == whole
    with pytest.raises(ValueError, match="windows"):
        Tally(windows=(0, 128), pairs=[0, 0], keys=[0, 0]).add_decodes(1, 1)


def _brute(start: int, count: int, window: int) -> tuple[int, int]:
    spans = [range(max(0, at + 1 - window) if window else 0, at + 1) for at in range(start, start + count)]
    return sum(map(len, spans)), len({key for span in spans for key in span})


@given(st.integers(0, 60), st.integers(1, 40), st.integers(0, 50))
def test_windows_cut_pairs_and_keys(start: int, count: int, window: int) -> None:
    assert (pairs_seen(start, count, window), keys_read(start, count, window)) == _brute(start, count, window)


def test_peaks_are_of_this_machine() -> None:
    """Loose: they are positive, and a product of a matrix and a vector does not reach the rate of one of matrices."""
    peaks = measure_peaks(torch.device("cpu"), torch.float32, seconds=0.02)
    assert peaks.memory_bytes > 1e8
    assert peaks.flops > 1e9


def test_experts_that_nobody_chose_are_not_read() -> None:
    config = ModelConfig.from_dict({**MIXTRAL, "num_experts_per_tok": 1})
    (shard,) = partition(config, ParallelDims())
    rates = rank_rates(config, spec_for(config), shard, 2.0)
    one, many = Tally.of(config), Tally.of(config)
    one.add([(0, 1)], samples=1)
    many.add([(0, 1000)], samples=1)
    weights = _expert_bytes(config, shard)
    assert rates.bytes_per_touched * one.touched == pytest.approx(weights / 4)
    assert rates.bytes_per_touched * many.touched == pytest.approx(weights)


def _expert_bytes(config: ModelConfig, shard: RankShard) -> float:
    assert config.experts is not None
    return 3 * config.hidden_size * config.experts.intermediate_size * 2.0 * 4 * shard.layers.size
