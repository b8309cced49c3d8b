"""How ranks find each other's shared memory: stale files, strangers, missing ranks and room; and what replaces it."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.parallel import segment as segment_files
from model.parallel import shared_memory
from model.parallel.collectives import make_context, supported_kind
from model.parallel.context import single_rank_context
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from model.parallel.progress import CollectiveError, CollectiveTimeout
from model.parallel.segment import Segment
from model.parallel.shared_memory import LEFT, ByteRing
from tests.support.ranks import tiny_config

pytestmark = pytest.mark.skipif(shared_memory.unsupported_reason() is not None, reason="no shared memory ranks here")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of their own for the segments of one test."""
    monkeypatch.setattr(segment_files, "_directory", lambda: tmp_path)
    return tmp_path


def open_segment(name: str, rank: int, size: int = 2, *, data_bytes: int = 128, timeout_seconds: float = 5) -> Segment:
    return Segment(name, rank, size, num_counters=2, data_bytes=data_bytes, timeout_seconds=timeout_seconds)


def open_both(name: str, *, first: int = 0, delay_seconds: float = 0.0) -> list[Segment]:
    """Ranks 0 and 1 from two threads, `first` ahead of the other."""
    opened: dict[int, Segment] = {}

    def join(rank: int) -> None:
        opened[rank] = open_segment(name, rank)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (first, 1 - first)]
    for thread in threads:
        thread.start()
        time.sleep(delay_seconds)
    for thread in threads:
        thread.join()
    return [opened[0], opened[1]]


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_may_come_in_any_order_and_leave_no_file(directory: Path, first: int) -> None:
    one, other = open_both("replica", first=first, delay_seconds=0.1)
    one.data[7] = 42
    one.counters[1].publish(3)
    assert other.counters[1].wait_for(3, 5)
    assert other.data[7] == 42
    assert list(directory.iterdir()) == []


def leave_a_stale_file(directory: Path, name: str) -> Path:
    """Kill a rank 0 that waits for its rank 1."""
    process = multiprocessing.get_context("forkserver").Process(target=_wait_in, args=(str(directory), name))
    process.start()
    limit = time.monotonic() + 30
    while not (files := [path for path in directory.iterdir() if not path.suffix]) and time.monotonic() < limit:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return files[0]


def _wait_in(directory: str, name: str) -> None:
    segment_files._directory = lambda: Path(directory)
    open_segment(name, 0, timeout_seconds=60)


@pytest.mark.parametrize("first", [0, 1])
def test_a_killed_ranks_file_is_replaced_whoever_comes_first(directory: Path, first: int) -> None:
    stale = leave_a_stale_file(directory, "replica")
    assert stale.exists()
    one, other = open_both("replica", first=first, delay_seconds=0.2)
    one.data[0] = 9
    assert other.data[0] == 9
    assert list(directory.iterdir()) == []


def test_what_other_replicas_left_is_swept(directory: Path) -> None:
    stale = leave_a_stale_file(directory, "killed long ago")
    os.utime(stale, (time.time() - 3600,) * 2)
    young = directory / "argosy-young"
    young.touch()
    held = directory / "argosy-held"
    held.touch()
    os.utime(held, (time.time() - 3600,) * 2)
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        open_both("another")
        assert sorted(directory.iterdir()) == [held, young]


def wait_in_vain(name: str) -> None:
    """Hold the name as a rank 0 whose rank 1 never comes."""
    with pytest.raises(CollectiveTimeout):
        open_segment(name, 0, timeout_seconds=1)


def test_a_name_in_use_is_refused(directory: Path) -> None:
    holder = threading.Thread(target=wait_in_vain, args=("replica",))
    holder.start()
    while not any(not path.suffix for path in directory.iterdir()):
        time.sleep(0.01)
    with pytest.raises(CollectiveError, match="'replica': namespaces must be unique"):
        open_segment("replica", 0)
    holder.join()


def test_a_rank_that_never_comes_is_named_and_leaves_no_file(directory: Path) -> None:
    with pytest.raises(CollectiveTimeout, match="rank 1 of 3 did not attach to the shared memory of 'replica'"):
        open_segment("replica", 0, 3, timeout_seconds=0.2)
    assert list(directory.iterdir()) == []
    with pytest.raises(CollectiveTimeout, match=r"rank 0 did not open .* \(seen by rank 1\)"):
        open_segment("replica", 1, timeout_seconds=0.2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_someone_elses_file_is_not_mapped(directory: Path) -> None:
    def give_away() -> None:
        while not (files := [path for path in directory.iterdir() if not path.suffix]):
            time.sleep(0.005)
        os.chown(files[0], 65534, 65534)

    rank_0 = threading.Thread(target=wait_in_vain, args=("replica",))
    rank_0.start()
    give_away()
    with pytest.raises(CollectiveError, match="belongs to user 65534"):
        open_segment("replica", 1)
    rank_0.join()


def test_missing_room_is_explained(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CollectiveError, match="has no room for .* bytes shared by 2 ranks; make it larger"):
        open_segment("replica", 0)
    assert list(directory.iterdir()) == []


def ring_pair(ring_bytes: int, timeout_seconds: float = 5) -> tuple[ByteRing, ByteRing, Segment]:
    """The writer's and the reader's end of one ring."""
    segment = open_segment(uuid.uuid4().hex, 0, 1, data_bytes=ring_bytes)
    ends = [ByteRing(*segment.counters, segment.data, "stage 0 to 1", timeout_seconds) for _ in range(2)]
    return ends[0], ends[1], segment


def test_messages_pass_a_ring_smaller_than_themselves() -> None:
    writer, reader, _ = ring_pair(100)
    messages = [np.arange(size, dtype=np.uint8) for size in (1, 0, 250, 99, 100, 101)]
    thread = threading.Thread(target=lambda: [writer.put(message) for message in messages])
    thread.start()
    for message in messages:
        taken = np.empty_like(message)
        reader.take(taken)
        assert taken.tobytes() == message.tobytes()
    thread.join()


def test_a_full_ring_and_a_gone_peer_end_the_wait() -> None:
    writer, _, _ = ring_pair(64, timeout_seconds=0.1)
    with pytest.raises(CollectiveTimeout, match="stage 0 to 1: the peer did not make room in 0 within"):
        writer.put(np.zeros(100, np.uint8))
    writer, reader, _ = ring_pair(64)
    writer.leave_as_writer()
    with pytest.raises(CollectiveError, match="the peer left before message 0"):
        reader.take(np.zeros(1, np.uint8))
    writer, reader, _ = ring_pair(64)
    reader.leave_as_reader()
    with pytest.raises(CollectiveError, match="the peer left before message 0"):
        writer.put(np.zeros(100, np.uint8))


def test_a_waiting_counter_sleeps_and_wakes_at_once() -> None:
    segment = open_segment(uuid.uuid4().hex, 0, 1)
    counter = segment.counters[0]
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(counter.wait_for(1, 30)))
    processor_time = time.process_time()
    waiter.start()
    time.sleep(0.5)
    counter.publish(1)
    waiter.join(5)
    assert results == [True]
    assert time.process_time() - processor_time < 0.2
    assert not counter.wait_for(2, 0.05)
    counter.publish(LEFT)
    assert counter.wait_for(1 << 40, 0)


def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")


def macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")


@pytest.mark.parametrize(
    ("machine", "reason"), [(other_machine, "this is aarch64"), (macos, "which darwin does not have")]
)
def test_other_machines_use_gloo_and_say_why(
    monkeypatch: pytest.MonkeyPatch, machine: Callable[[pytest.MonkeyPatch], None], reason: str
) -> None:
    assert supported_kind("shared_memory") == ("shared_memory", None)
    machine(monkeypatch)
    kind, why = supported_kind("shared_memory")
    assert kind == "gloo"
    assert why is not None
    assert reason in why
    shard = partition(tiny_config(), ParallelDims(tp=2))[0]
    with pytest.raises(CollectiveError, match=f"gloo needs a store to meet at .*{reason}"):
        make_context("shared_memory", shard, namespace="n", device=torch.device("cpu"), timeout_seconds=1)


def test_one_rank_hands_its_tokens_to_itself() -> None:
    context = single_rank_context(partition(tiny_config(), ParallelDims())[0])
    tokens = np.array([1, 2], np.int32)
    context.links.feed_back(tokens)
    tokens[:] = 0
    context.links.feed_back(np.array([3], np.int32))
    assert context.links.take_feed_back(2).tolist() == [1, 2]
    with pytest.raises(CollectiveError, match="5 fed back tokens were asked for, the next hand-over holds 1"):
        context.links.take_feed_back(5)
    with pytest.raises(CollectiveError, match="the only stage has no next stage"):
        context.links.send(torch.zeros(1, 1))
    with pytest.raises(CollectiveError, match="the only stage has no previous stage"):
        context.links.receive(1, 1)
    context.leave()
