"""Links that go silent, and clients that vanish, stop reading or run out of time. Names: docs/reliability.md."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import grpc.aio
import pytest

from argosy.internal.v1 import control_pb2
from cluster import rpc
from cluster.errors import Reason
from cluster.protocol import DEAD_AFTER_SECONDS
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.fault_world import asks, check_gap, fault_world, report
from tests.support.paged_fake import answer
from tests.support.router_world import MODEL, request, run_async

pytestmark = pytest.mark.model

IGNORE_END = {"ignore_end_of_text": True}


@run_async
async def test_t10_a_black_holed_link_is_left_and_its_late_tokens_are_dropped(
    smollm2_dir: Path, tmp_path: Path
) -> None:
    async with fault_world(smollm2_dir, tmp_path, tp=1, proxied=True) as faults:
        for ask in asks(10, random.Random(11), 200):
            faults.ask(ask)
        await faults.until_tokens(80)
        proxy = faults.sites[0].proxy
        assert proxy
        proxy.black_hole()
        await asyncio.sleep(3 * DEAD_AFTER_SECONDS)
        proxy.heal()
        replies = await faults.assert_exact()
        assert faults.continuations >= 4
        check_gap("T10 router link", replies, faults.warm_bound(260, 10 * faults.step_seconds))
        assert [site.epochs for site in faults.sites] == [[1], [1]], "the replica itself was well"


@pytest.mark.faults_long
@run_async
async def test_a_reset_and_a_slow_link_lose_nothing(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1, proxied=True) as faults:
        proxy = faults.sites[0].proxy
        assert proxy
        proxy.delay_seconds = 0.05
        for ask in asks(6, random.Random(12), 100):
            faults.ask(ask)
        for steps in (20, 60):
            await faults.until_tokens(steps)
            proxy.reset()
        replies = await faults.assert_exact()
        check_gap("link reset", replies, faults.warm_bound(160, 10 * faults.step_seconds))


@run_async
async def test_t21_stale_entries_of_the_directory_delay_nobody(smollm2_dir: Path, tmp_path: Path) -> None:
    class Stale(FakeReplica):
        def __init__(self, entry: control_pb2.DirectoryEntry) -> None:
            super().__init__(hashed_tokens([1]))
            self._entry = entry

        def entry(self) -> control_pb2.DirectoryEntry:
            return self._entry

    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1) as faults:
        real = faults.sites[0].entry()
        old = control_pb2.DirectoryEntry(replica_id=f"{MODEL}/8", model=MODEL, address=real.address, epoch=77)
        gone = control_pb2.DirectoryEntry(replica_id=f"{MODEL}/9", model=MODEL, address="127.0.0.1:9", epoch=1)
        faults.world.directory.replicas += [Stale(old), Stale(gone)]
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        for ask in asks(12, random.Random(13), 10):
            faults.ask(ask)
        await faults.assert_exact()
        report("T21", 12, 0)
        assert time.monotonic() - begun < 5.0


@run_async
async def test_t23_prompts_cancelled_half_way_make_room_at_once(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1, max_batch_tokens=32, pass_seconds=0.03) as faults:
        engine = faults.sites[0].current.engine._engine
        calls = [
            faults.world.inference.Generate(request(token_ids={"ids": [i] * 400}, max_tokens=4)) for i in range(10)
        ]
        for call in calls:
            await call.read()
        await faults.world.until(lambda: engine.step >= 6)
        for call in calls:
            call.cancel()
        cancelled_at = engine.step
        await faults.world.until(lambda: not engine.load().used_blocks)
        assert engine.step - cancelled_at <= 4, "at most what was in flight and one chunk more"
        (short,) = asks(1, random.Random(14), 1)
        faults.ask(short)
        before = engine.step
        await faults.assert_exact()
        assert engine.step - before <= 3, "nobody computes what was cancelled"
        report("T23", 11, 0)


@pytest.mark.faults_long
@run_async
async def test_t24_clients_cut_in_the_middle_cost_nothing_more(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1, num_blocks=4096, max_sequences=256) as faults:
        engine = faults.sites[0].current.engine._engine
        calls = [faults.world.inference.Generate(ask) for ask in asks(200, random.Random(15), 300)]
        for call in calls:
            await call.read()
        await faults.world.until(lambda: engine.step >= 30)
        (survivor,) = asks(1, random.Random(16), 20)
        for call in calls:
            call.cancel()
        faults.ask(survivor)
        await faults.assert_exact()
        await faults.world.until(lambda: not engine.load().used_blocks)
        stopped_at = engine.step
        await asyncio.sleep(0.2)
        assert engine.step == stopped_at, "no step without anybody to make it for"
        report("T24", 201, 0)


@run_async
async def test_t25_stopped_and_slow_readers_hold_up_nobody(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1) as faults:
        engine = faults.sites[0].current.engine._engine
        stopped = [faults.world.inference.Generate(ask) for ask in asks(4, random.Random(17), 450)]
        for call in stopped:
            await call.read()
        for ask in asks(6, random.Random(18), 100):
            faults.ask(ask)
        before = engine.step
        replies = await faults.assert_exact()
        assert engine.step - before <= 150, "the others get a token every step"
        check_gap("T25", replies, faults.warm_bound(100, 0.0))
        for call in stopped:
            call.cancel()


@run_async
async def test_t27_random_deadlines_are_kept(smollm2_dir: Path, tmp_path: Path) -> None:
    rng = random.Random(19)
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1, num_blocks=2048, max_sequences=64) as faults:
        late: list[float] = []
        reasons: set[Reason] = set()

        async def call(number: int) -> None:
            timeout = rng.uniform(0.05, 2.0)
            ask = request(token_ids={"ids": [number, 7]}, max_tokens=400, sampling={"seed": 1}, stop=IGNORE_END)
            tokens: list[int] = []
            begun = time.monotonic()
            try:
                async for event in faults.world.inference.Generate(ask, timeout=timeout):
                    tokens += event.delta.token_ids
            except grpc.aio.AioRpcError as error:
                reasons.add(rpc.to_service_error(error).reason)
            else:
                assert tokens == answer([number, 7], 400, seed=1)
            late.append(time.monotonic() - begun - timeout)

        await asyncio.gather(*(call(number) for number in range(200)))
        engine = faults.sites[0].current.engine._engine
        await faults.world.until(lambda: not engine.load().used_blocks)
        report("T27", 200, 0, round(sorted(late)[-3] / 0.1, 2))
        assert reasons == {Reason.DEADLINE}
        assert max(late) < 2.0
