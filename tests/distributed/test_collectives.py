"""One suite for every kind of context: sums, gathers and hand-overs against plain torch, on real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from model.parallel import shared_memory
from model.parallel.context import ParallelContext
from model.parallel.dims import ParallelDims
from model.parallel.progress import CollectiveError, CollectiveTimeout
from tests.support.ranks import Ranks, run_ranks

Array = npt.NDArray[Any]

KINDS = [
    pytest.param("gloo"),
    pytest.param(
        "shared_memory",
        marks=pytest.mark.skipif(
            shared_memory.unsupported_reason() is not None, reason=str(shared_memory.unsupported_reason())
        ),
    ),
]
kinds = pytest.mark.parametrize("kind", KINDS)
# From one number to several pieces of a megabyte; odd sizes leave uneven sections.
SHAPES = ((1, 1), (1, 576), (3, 5, 7), (127, 576), (1031, 577))


def part(shape: tuple[int, ...], rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What rank `rank` puts into a collective; magnitudes differ, so that another order gives other bits."""
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(shape, generator=generator) * 10.0**rank).to(dtype)


def reduce_everything(context: ParallelContext) -> list[Array]:
    rank = context.tensor_group.rank
    results = [context.tensor_group.all_reduce(part(shape, rank)) for shape in SHAPES]
    results.append(context.tensor_group.all_reduce(part((64, 8), rank)[:, ::2]))
    results.append(context.tensor_group.all_reduce(part((5, 7), rank, torch.bfloat16)))
    results.append(context.tensor_group.all_reduce(torch.tensor([rank + 1, 2], dtype=torch.int32)))
    return [(result.float() if result.dtype == torch.bfloat16 else result).numpy() for result in results]


def in_rank_order(parts: list[Tensor]) -> Tensor:
    total = parts[0].clone()
    for other in parts[1:]:
        total += other
    return total


@kinds
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_all_reduce_sums_and_every_rank_gets_the_same_bits(kind: str, size: int) -> None:
    by_rank = run_ranks(kind, ParallelDims(tp=size), reduce_everything)
    for case, results in enumerate(zip(*by_rank, strict=True)):
        for result in results[1:]:
            assert results[0].tobytes() == result.tobytes(), f"case {case}: ranks differ"
    for index, shape in enumerate(SHAPES):
        expected = in_rank_order([part(shape, rank) for rank in range(size)])
        result = torch.from_numpy(by_rank[0][index])
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * 10**size)
        if kind == "shared_memory":
            assert torch.equal(result, expected), "not added in rank order"
    strided, narrow, integers = map(torch.from_numpy, by_rank[0][-3:])
    torch.testing.assert_close(strided, in_rank_order([part((64, 8), rank)[:, ::2] for rank in range(size)]))
    parts = [part((5, 7), rank, torch.bfloat16).float() for rank in range(size)]
    torch.testing.assert_close(narrow, in_rank_order(parts), rtol=0.02, atol=10.0**size * 0.01)
    assert integers.tolist() == [size * (size + 1) // 2, 2 * size]


def gather_everything(context: ParallelContext, cases: list[tuple[tuple[int, ...], list[int]]]) -> list[Array]:
    rank = context.tensor_group.rank
    return [context.tensor_group.all_gather(part((*rows, sizes[rank]), rank), sizes).numpy() for rows, sizes in cases]


@kinds
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_all_gather_joins_uneven_parts_in_rank_order(kind: str, size: int) -> None:
    widths = [3, 1, 6, 2][:size]
    cases: list[tuple[tuple[int, ...], list[int]]] = [
        ((), widths),
        ((1,), widths),
        ((2, 5), widths),
        ((7,), [12289, 12288, 12287, 1][:size]),
        ((40,), [70_000, 3, 9_000, 20_001][:size]),
    ]
    by_rank = run_ranks(kind, ParallelDims(tp=size), gather_everything, cases)
    for results in by_rank:
        for (rows, sizes), result in zip(cases, results, strict=True):
            parts = [part((*rows, sizes[rank]), rank) for rank in range(size)]
            assert torch.equal(torch.from_numpy(result), torch.cat(parts, dim=-1)), (rows, sizes)


def many_small_steps(context: ParallelContext, steps: int) -> list[float]:
    """Reduces and gathers by turns; ranks take turns being late, so that buffers are reused under every overlap."""
    group, totals = context.tensor_group, []
    for step in range(steps):
        if step % 50 == group.rank:
            time.sleep(0.002)
        reduced = group.all_reduce(torch.full((1, 16), float(step + group.rank)))
        gathered = group.all_gather(torch.full((1, 2), float(step * group.rank)), [2] * group.size)
        totals.append(float(reduced[0, 0] + gathered.sum()))
    return totals


@kinds
def test_hundreds_of_operations_stay_in_step(kind: str) -> None:
    size, steps = 3, 400
    by_rank = run_ranks(kind, ParallelDims(tp=size), many_small_steps, steps)
    expected = [3.0 * step + 3 + 2 * step * 3 for step in range(steps)]
    assert by_rank == [expected] * size


def run_pipeline(context: ParallelContext, steps: int, num_tokens: int, hidden_size: int) -> list[list[int]]:
    """Each stage adds one; the last feeds back what it saw. The first runs ahead by a step a stage."""
    shard, links, dims = context.shard, context.links, context.shard.dims
    taken: list[list[int]] = []
    for step in range(steps + dims.pp):
        if step < steps:
            if shard.is_first_stage:
                hidden_TH = torch.full((num_tokens, hidden_size), float(step), dtype=torch.bfloat16)
            else:
                hidden_TH = links.receive(num_tokens, hidden_size, torch.bfloat16)
            hidden_TH = context.tensor_group.all_reduce((hidden_TH + 1) / dims.tp)
            if shard.is_last_stage:
                assert bool((hidden_TH == hidden_TH[0, 0]).all())
                links.feed_back(np.array([int(hidden_TH[0, 0]), step, shard.coordinates.tp_rank], np.int32))
            else:
                links.send(hidden_TH)
                hidden_TH.fill_(-1)
        if shard.is_first_stage and step >= dims.pp:
            taken.append(links.take_feed_back(3).tolist())
    return taken


@kinds
@pytest.mark.parametrize("dims", [ParallelDims(1, 1), ParallelDims(1, 2), ParallelDims(1, 4), ParallelDims(2, 2)])
def test_hidden_states_go_forward_and_tokens_come_back(kind: str, dims: ParallelDims) -> None:
    steps = 12
    by_rank = run_ranks(kind, dims, run_pipeline, steps, 9, 576)
    for world_rank, taken in enumerate(by_rank):
        tp_rank = world_rank % dims.tp
        expected = [[step + dims.pp, step, tp_rank] for step in range(steps)]
        assert taken == (expected if world_rank < dims.tp else [])


@kinds
def test_hidden_states_larger_than_the_room_between_stages_pass(kind: str) -> None:
    dims = ParallelDims(1, 2)
    assert run_ranks(kind, dims, run_pipeline, 3, 4096, 640)[0] == [[step + 2, step, 0] for step in range(3)]


def be_silent(context: ParallelContext, silent_rank: int) -> Any:
    if context.tensor_group.rank == silent_rank:
        time.sleep(60)
    started = time.monotonic()
    try:
        context.tensor_group.all_reduce(torch.zeros(1, 8))
    except CollectiveError as error:
        return type(error).__name__, str(error), time.monotonic() - started, context.progress.where
    return None


@kinds
def test_a_silent_rank_ends_the_wait_at_its_deadline_and_is_named(kind: str) -> None:
    with Ranks(kind, ParallelDims(tp=3), be_silent, 1, timeout_seconds=5.0) as ranks:
        outcomes = [ranks.outcome(rank)[0] for rank in (0, 2)]
    assert "CollectiveTimeout" in {name for name, *_ in outcomes}
    for _, message, waited, where in outcomes:
        assert "all_reduce" in message
        assert "all_reduce" in where
        assert waited < 25
    if kind == "shared_memory":
        assert any("rank 1 did not reach all_reduce number 1" in message for _, message, *_ in outcomes)


def reduce_until_failure(context: ParallelContext, started: Path) -> str:
    for _ in range(10_000_000):
        try:
            context.tensor_group.all_reduce(torch.zeros(1, 8))
        except CollectiveError as error:
            return str(error)
        started.touch()
    raise AssertionError("nothing failed")


@kinds
def test_a_killed_rank_fails_the_others(kind: str, tmp_path: Path) -> None:
    started = tmp_path / "started"
    with Ranks(kind, ParallelDims(tp=2), reduce_until_failure, started, timeout_seconds=5.0) as ranks:
        limit = time.monotonic() + 60
        while not started.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        os.kill(ranks.processes[1].pid, signal.SIGKILL)
        message, failure = ranks.outcome(0)
    assert failure is None
    assert "all_reduce" in message


def leave_early(context: ParallelContext) -> tuple[str, float] | None:
    if context.shard.coordinates.tp_rank == 1:
        context.leave()
        return None
    started = time.monotonic()
    with pytest.raises(CollectiveError) as caught:
        context.tensor_group.all_reduce(torch.zeros(4))
    return str(caught.value), time.monotonic() - started


def step_out_of_line(context: ParallelContext) -> str | None:
    try:
        if context.tensor_group.rank == 0:
            context.tensor_group.all_gather(torch.zeros(1, 4), [4, 4])
        else:
            context.tensor_group.all_reduce(torch.zeros(1, 576))
    except CollectiveError as error:
        return str(error)
    return None


def wait_for_stage(context: ParallelContext) -> str | None:
    if context.shard.is_first_stage:
        context.links.send(torch.zeros(2, 4))
        return None
    context.links.receive(2, 4)
    with pytest.raises(CollectiveTimeout) as caught:
        context.links.receive(2, 4)
    return str(caught.value)


def receive_another_size(context: ParallelContext) -> str | None:
    if context.shard.is_first_stage:
        context.links.send(torch.zeros(2, 4))
        return None
    with pytest.raises(CollectiveError) as caught:
        context.links.receive(3, 4)
    return str(caught.value)


@pytest.mark.skipif(shared_memory.unsupported_reason() is not None, reason="no shared-memory collectives here")
class TestSharedMemoryOnly:
    def test_leaving_ends_the_others_wait_at_once(self) -> None:
        (message, waited), _ = run_ranks("shared_memory", ParallelDims(tp=2), leave_early)
        assert "rank 1 left" in message
        assert waited < 10

    def test_ranks_out_of_step_never_mix_bytes(self) -> None:
        messages = run_ranks("shared_memory", ParallelDims(tp=2), step_out_of_line)
        assert any(message and "out of step" in message for message in messages)

    def test_a_silent_stage_is_named(self) -> None:
        message = run_ranks("shared_memory", ParallelDims(pp=2), wait_for_stage, timeout_seconds=3.0)[1]
        assert "stage 0 to 1" in message
        assert "message 1" in message

    def test_a_message_of_another_size_is_refused(self) -> None:
        message = run_ranks("shared_memory", ParallelDims(pp=2), receive_another_size)[1]
        assert "expected message 0 of 48 bytes, found message 0 of 32 bytes" in message

    def test_nothing_is_left_in_the_file_system(self) -> None:
        before = set(Path("/dev/shm").glob("argosy-*"))
        run_ranks("shared_memory", ParallelDims(2, 2), run_pipeline, 2, 1, 8)
        assert set(Path("/dev/shm").glob("argosy-*")) <= before
