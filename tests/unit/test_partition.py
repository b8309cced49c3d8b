"""Cutting a model: tables for shapes that matter, properties for all shapes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.parallel.dims import ParallelDims
from model.parallel.partition import (
    HeadShard,
    PartitionError,
    Span,
    StageCosts,
    kv_block_bytes,
    modelled_costs,
    partition,
    split_dim,
    split_heads,
)
from model.weights.tables import weight_bytes
from tests.support.ranks import tiny_config


def smollm2_135m() -> dict[str, object]:
    return {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
    }


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "ranks", "runs", "kv_runs"),
    [
        (9, 3, 1, [9], [(0, 3)]),
        (9, 3, 2, [6, 3], [(0, 2), (2, 3)]),
        (9, 3, 3, [3, 3, 3], [(0, 1), (1, 2), (2, 3)]),
        (9, 3, 4, [3, 3, 2, 1], [(0, 1), (1, 2), (2, 3), (2, 3)]),
        (9, 3, 5, [3, 2, 1, 2, 1], [(0, 1), (1, 2), (1, 2), (2, 3), (2, 3)]),
        (9, 3, 9, [1] * 9, [(head // 3, head // 3 + 1) for head in range(9)]),
        (32, 8, 8, [4] * 8, [(head, head + 1) for head in range(8)]),
        (32, 8, 16, [2] * 16, [(rank // 2, rank // 2 + 1) for rank in range(16)]),
        (8, 8, 3, [3, 3, 2], [(0, 3), (3, 6), (6, 8)]),
        (4, 1, 2, [2, 2], [(0, 1), (0, 1)]),
    ],
)
def test_heads_of_known_models(
    num_heads: int, num_kv_heads: int, ranks: int, runs: list[int], kv_runs: list[tuple[int, int]]
) -> None:
    shards = split_heads(num_heads, num_kv_heads, [1.0] * ranks)
    assert [shard.query_heads.size for shard in shards] == runs
    assert [(shard.kv_heads.start, shard.kv_heads.end) for shard in shards] == kv_runs


def test_a_partial_group_is_padded_to_uniform_attention() -> None:
    # 5 query heads a KV head, a rank three times as fast: its run ends inside the second group.
    fast, *_ = split_heads(10, 2, [4.0, 1.0, 1.0])
    assert fast == HeadShard(Span(0, 8), Span(0, 2), 5, (0, 1, 2, 3, 4, 5, 6, 7, None, None))


def test_heads_refuse_what_cannot_be_cut() -> None:
    with pytest.raises(PartitionError, match="num_heads=9 is fewer than tp=10; use tp <= 9"):
        split_heads(9, 3, [1.0] * 10)
    with pytest.raises(PartitionError, match="num_heads=9 is not a multiple of num_kv_heads=2"):
        split_heads(9, 2, [1.0])


@st.composite
def head_cases(draw: st.DrawFn) -> tuple[int, int, list[float]]:
    num_kv_heads = draw(st.integers(1, 9))
    num_heads = num_kv_heads * draw(st.integers(1, 9))
    ranks = draw(st.integers(1, min(num_heads, 17)))
    even = draw(st.booleans())
    weights = [1.0] * ranks if even else draw(st.lists(st.floats(0.1, 8.0), min_size=ranks, max_size=ranks))
    return num_heads, num_kv_heads, weights


@settings(deadline=None)  # the machine may be busy
@given(head_cases())
def test_every_query_head_is_on_one_rank_and_reads_its_own_kv_head(case: tuple[int, int, list[float]]) -> None:
    num_heads, num_kv_heads, weights = case
    group = num_heads // num_kv_heads
    shards = split_heads(num_heads, num_kv_heads, weights)
    real = [head for shard in shards for head in shard.slots if head is not None]
    assert real == list(range(num_heads))
    for shard in shards:
        assert shard.query_heads.size >= 1
        assert len(shard.slots) == shard.kv_heads.size * shard.group_size
        assert [head for head in shard.slots if head is not None] == list(
            range(shard.query_heads.start, shard.query_heads.end)
        )
        for slot, head in enumerate(shard.slots):
            if head is not None:
                assert head // group == shard.kv_heads.start + slot // shard.group_size
    if len(weights) <= num_kv_heads:
        assert all(None not in shard.slots and shard.group_size == group for shard in shards)
        assert sum(shard.kv_heads.size for shard in shards) == num_kv_heads


@settings(deadline=None)  # the machine may be busy
@given(head_cases())
def test_equal_ranks_never_carry_more_than_an_even_cut_would(case: tuple[int, int, list[float]]) -> None:
    num_heads, num_kv_heads, weights = case
    ranks, group = len(weights), num_heads // num_kv_heads
    shards = split_heads(num_heads, num_kv_heads, [1.0] * ranks)
    if ranks <= num_kv_heads:
        sizes = [shard.kv_heads.size for shard in shards]
        assert max(sizes) - min(sizes) <= 1
        return
    cuts = [num_heads * rank // ranks for rank in range(ranks + 1)]

    def carried(start: int, end: int) -> int:
        touched = range(start // group, -(-end // group))
        widest = max(min(end, (kv + 1) * group) - max(start, kv * group) for kv in touched)
        return len(touched) * (widest + 1)

    even = max(carried(start, end) for start, end in itertools.pairwise(cuts))
    assert max(len(shard.slots) + shard.kv_heads.size for shard in shards) <= even


@given(st.integers(1, 5000), st.integers(1, 64), st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12))
def test_a_dimension_is_cut_at_quanta_with_something_for_everyone(
    size: int, quantum: int, weights: list[float]
) -> None:
    units = -(-size // quantum)
    if units < len(weights):
        with pytest.raises(PartitionError, match=f"size={size} in units of {quantum} gives {units} parts"):
            split_dim("size", size, weights, quantum)
        return
    spans = split_dim("size", size, weights, quantum)
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == size
    assert all(span.size > 0 and span.start % quantum == 0 for span in spans)


@given(st.integers(1, 5000), st.integers(1, 40))
def test_equal_ranks_differ_by_at_most_one(size: int, ranks: int) -> None:
    if size >= ranks:
        sizes = [span.size for span in split_dim("size", size, [1.0] * ranks)]
        assert max(sizes) - min(sizes) <= 1


def test_weights_share_out_in_proportion() -> None:
    shards = partition(tiny_config(**smollm2_135m()), ParallelDims(tp=3), weights=[3, 1, 2])
    assert [shard.intermediate.size for shard in shards] == [768, 256, 512]
    assert [shard.vocab.size for shard in shards] == [24576, 8192, 16384]


@pytest.mark.parametrize(("pp", "layers"), [(1, [30]), (2, [19, 11]), (3, [12, 13, 5]), (30, [1] * 30)])
def test_stages_are_balanced_by_time_not_by_layers(pp: int, layers: list[int]) -> None:
    # The head of SmolLM2-135M costs eight of its layers.
    assert [shard.layers.size for shard in partition(tiny_config(**smollm2_135m()), ParallelDims(pp=pp))] == layers


def test_a_slow_stage_gets_fewer_layers() -> None:
    costs = StageCosts(layer=1.0, embedding=0.0, head=0.0)
    shards = partition(tiny_config(num_layers=12), ParallelDims(tp=2, pp=2), weights=[1.0, 1.0, 0.5, 0.5], costs=costs)
    assert [shard.layers.size for shard in shards] == [8, 8, 4, 4]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 20), st.integers(0, 20), st.integers(1, 10))
def test_no_other_cut_of_the_layers_is_faster(num_layers: int, pp: int, embedding: int, head: int, layer: int) -> None:
    config = tiny_config(num_layers=num_layers)
    costs = StageCosts(float(layer), float(embedding), float(head))
    if pp > num_layers:
        with pytest.raises(PartitionError, match=f"num_layers={num_layers} is fewer than pp={pp}"):
            partition(config, ParallelDims(pp=pp), costs=costs)
        return

    def slowest(cuts: tuple[int, ...]) -> int:
        return max(
            layer * (end - start) + embedding * (start == 0) + head * (end == num_layers)
            for start, end in itertools.pairwise((0, *cuts, num_layers))
        )

    shards = partition(config, ParallelDims(pp=pp), costs=costs)
    chosen = tuple(shard.layers.end for shard in shards[:-1])
    assert all(shard.layers.size >= 1 for shard in shards)
    assert slowest(chosen) == min(map(slowest, itertools.combinations(range(1, num_layers), pp - 1)))


def test_bytes_count_what_each_rank_holds() -> None:
    config = tiny_config(tie_word_embeddings=False)
    (whole,) = partition(config, ParallelDims())
    per_layer = 36 * (36 + 12 + 12 + 36) + 3 * 36 * 50 + 2 * 36
    assert weight_bytes(config, whole, 2) == 2 * (4 * per_layer + 2 * 131 * 36 + 36)
    assert weight_bytes(tiny_config(), whole, 2) == 2 * (4 * per_layer + 131 * 36 + 36)
    biased = tiny_config(attention_bias=True, mlp_bias=True)
    assert weight_bytes(biased, whole, 1) - weight_bytes(tiny_config(), whole, 1) == 4 * (36 + 24 + 36 + 100 + 36)
    assert kv_block_bytes(config, whole, 16, 2) == 2 * 4 * 3 * 4 * 16 * 2
    assert weight_bytes(config, whole, 0.5625) == -(-weight_bytes(config, whole, 16) * 9 // 256)


def test_a_tied_head_is_a_second_copy_only_on_another_stage() -> None:
    config = tiny_config()
    first, last = partition(config, ParallelDims(pp=2))
    (whole,) = partition(config, ParallelDims())
    both = weight_bytes(config, first, 1) + weight_bytes(config, last, 1)
    assert both == weight_bytes(config, whole, 1) + config.vocab_size * config.hidden_size


def test_world_ranks_count_tensor_ranks_first() -> None:
    shards = partition(tiny_config(), ParallelDims(tp=3, pp=2))
    assert [(shard.coordinates.stage, shard.coordinates.tp_rank) for shard in shards] == [
        (stage, rank) for stage in range(2) for rank in range(3)
    ]
    assert [shard.is_first_stage for shard in shards] == [True] * 3 + [False] * 3
    assert [shard.is_last_stage for shard in shards] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "weights has 1 entries; give one for each of the 2 ranks"),
        ({"weights": [1.0, 0.0]}, "every weight must be a positive number"),
        ({"weights": [1.0, float("nan")]}, "every weight must be a positive number"),
        ({"quantum": 0}, "quantum=0: must be at least 1"),
        ({"quantum": 50}, "intermediate_size=50 in units of 50 gives 1 parts for 2 ranks"),
    ],
)
def test_arguments_that_make_no_sense_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        partition(tiny_config(), ParallelDims(tp=2), **options)
    with pytest.raises(PartitionError, match="tp=0, pp=1"):
        partition(tiny_config(), ParallelDims(tp=0))


def test_the_model_of_time_weighs_a_layer_by_its_weights() -> None:
    costs = modelled_costs(tiny_config(**smollm2_135m()))
    assert costs.head / costs.layer == pytest.approx(8.0, rel=0.01)
