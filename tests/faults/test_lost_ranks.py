"""Ranks that die, stop, hang and crawl: every stream goes on, at the right token. Names: docs/reliability.md."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import subprocess
import time
from pathlib import Path

import grpc.aio
import pytest

from cluster import rpc
from cluster.errors import Reason
from cluster.protocol import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS
from tests.support.fault_world import asks, check_gap, fault_world, report
from tests.support.paged_fake import HANGING_TOKEN, POISON_TOKEN
from tests.support.router_world import request, run_async

pytestmark = pytest.mark.model


@pytest.mark.parametrize(
    ("test", "fault"), [("T01", signal.SIGKILL), ("T02", signal.SIGSTOP)], ids=["T01-killed", "T02-stopped"]
)
@run_async
async def test_a_lost_rank_is_a_pause(
    smollm2_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, test: str, fault: signal.Signals
) -> None:
    caplog.set_level(logging.ERROR)
    async with fault_world(smollm2_dir, tmp_path) as faults:
        for ask in asks(16, random.Random(1), 200):
            faults.ask(ask)
        await faults.until_tokens(100)  # about 50 at either replica
        site = faults.sites[0]
        assert site.current
        victim = site.current.workers[0]  # the one that answers
        victim.send_signal(fault)
        replies = await faults.assert_exact()
        assert faults.continuations >= 4, "the streams of the lost replica moved"
        check_gap(test, replies, faults.warm_bound(260, 10 * faults.step_seconds))
        assert f"stage 0 rank 0 (pid {victim.pid}" in caplog.text, "the lost rank is named"
        await faults.world.until(lambda: victim.poll() is not None and site.epochs == [1, 2])
        await faults.world.until_ready(2)


@run_async
async def test_t04_a_rank_killed_during_prefill(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, max_batch_tokens=32, pass_seconds=0.03) as faults:
        for ask in asks(6, random.Random(2), 20, longest_prompt=400):
            faults.ask(ask)
        await faults.until_tokens(6)
        assert faults.sites[0].current
        faults.sites[0].current.workers[0].kill()
        replies = await faults.assert_exact()
        prompts = sum(reply.finished.usage.prompt_tokens for reply in replies)
        await faults.world.until(lambda: not faults.world.ledger.open_rows)
        assert faults.world.ledger.prompt_tokens == prompts, "a prompt is billed once, however often it is computed"
        report("T04", len(replies), 0)


@pytest.mark.faults_long
@run_async
async def test_t05_a_stage_killed_while_others_are_cancelled(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, tp=1, pp=2) as faults:
        for ask in asks(8, random.Random(3), 80):
            faults.ask(ask)
        doomed = [faults.world.inference.Generate(ask) for ask in asks(2, random.Random(4), 200)]
        for call in doomed:
            await call.read()
        await faults.until_tokens(60)
        assert faults.sites[0].current
        faults.sites[0].current.workers[1].kill()
        for call in doomed:
            call.cancel()
        await faults.assert_exact()
        report("T05", 8, 0)


@pytest.mark.faults_long
@run_async
async def test_t06_a_stopped_rank_that_wakes_up_changes_nothing(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path) as faults:
        site = faults.sites[0]
        site.is_healing = False  # so that only the epoch, not a kill, stands between the zombie and the streams
        for ask in asks(8, random.Random(5), 300):
            faults.ask(ask)
        await faults.until_tokens(60)
        assert site.current
        victim = site.current.workers[0]
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(3 * DEAD_AFTER_SECONDS)
        victim.send_signal(signal.SIGCONT)
        await faults.assert_exact()
        await faults.world.until(lambda: victim.poll() is not None)
        report("T06", 8, 0)


@run_async
async def test_t07_with_no_replica_left_the_deadline_ends_the_wait(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path) as faults:
        for site in faults.sites:
            site.is_healing = False
        timeout = 6.0
        begun = time.monotonic()
        calls = [faults.world.generate(ask, timeout) for ask in asks(4, random.Random(6), 400)]
        running = [asyncio.create_task(call) for call in calls]
        await faults.until_tokens(20)
        for site in faults.sites:
            assert site.current
            site.current.workers[0].kill()
            await asyncio.sleep(0.2)
        for task in running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await task
            error = rpc.to_service_error(caught.value)
            assert error.reason is Reason.REPLICA_LOST
            assert error.retry_after
        assert time.monotonic() - begun < timeout + 1.0
        report("T07 none left", 4, 4)


@run_async
async def test_t07_a_second_loss_during_the_replay_waits_for_the_rebuilt_one(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path) as faults:
        for ask in asks(6, random.Random(7), 200):
            faults.ask(ask)
        await faults.until_tokens(60)
        for site in faults.sites:
            assert site.current
            site.current.workers[0].kill()
            await asyncio.sleep(0.1)
        replies = await faults.assert_exact()
        assert max(len(site.epochs) for site in faults.sites) == 2
        report("T07 rebuilt", len(replies), 0)


@pytest.mark.parametrize(
    ("test", "token"), [("T08", POISON_TOKEN), ("T09", HANGING_TOKEN)], ids=["T08-crashes", "T09-hangs"]
)
@run_async
async def test_a_request_that_costs_two_replicas_is_quarantined(
    smollm2_dir: Path, tmp_path: Path, test: str, token: int
) -> None:
    async with fault_world(smollm2_dir, tmp_path, count=3) as faults:
        for ask in asks(10, random.Random(8), 150):
            faults.ask(ask)
        await faults.until_tokens(30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await faults.world.generate(request(token_ids={"ids": [5, 6, token, 7]}, max_tokens=5))
        assert rpc.to_service_error(caught.value).reason is Reason.QUARANTINED
        await faults.assert_exact()
        await faults.world.until_ready(3)
        assert sum(len(site.epochs) - 1 for site in faults.sites) == 2, "two replicas were lost to it, not one more"
        report(test, 11, 1)


@run_async
async def test_t11_a_rank_at_half_speed_is_slow_not_dead(
    smollm2_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fault_world(smollm2_dir, tmp_path) as faults:
        for ask in asks(8, random.Random(9), 450):
            faults.ask(ask)
        slow, other = (site.current for site in faults.sites)
        assert slow
        assert other
        victim = slow.workers[0]
        halving = asyncio.create_task(halve(victim))
        try:
            marked = f"stage 0 rank 0 (pid {victim.pid}"
            await faults.world.until(lambda: marked in caplog.text and "is slow:" in caplog.text, 60)
            assert [rank.slow for rank in (await slow.status()).ranks] == [True, False]
            for ask in asks(12, random.Random(10), 5):
                await faults.ask(ask)
        finally:
            halving.cancel()
            victim.send_signal(signal.SIGCONT)
        await faults.assert_exact()
        assert [site.epochs for site in faults.sites] == [[1], [1]]
        assert not any(rank.slow for rank in (await other.status()).ranks)
        report("T11", 20, 0)


async def halve(victim: subprocess.Popen[bytes]) -> None:
    """Stop a process half of the time."""
    while True:
        for fault in (signal.SIGSTOP, signal.SIGCONT):
            victim.send_signal(fault)
            await asyncio.sleep(0.1)


@run_async
async def test_a_stall_is_noticed_by_the_predicted_step_at_the_router_too(smollm2_dir: Path, tmp_path: Path) -> None:
    """An engine whose own watch sleeps still heartbeats; its steps' predictions tell the router when to go."""
    async with fault_world(smollm2_dir, tmp_path) as faults:
        for ask in asks(6, random.Random(10), 200):
            faults.ask(ask)
        await faults.until_tokens(80)
        site = faults.sites[0]
        assert site.current
        site.is_healing = False
        watcher = site.current.engine._executor._watcher
        assert watcher
        watcher.cancel()
        site.current.workers[0].send_signal(signal.SIGSTOP)
        site.current.workers[1].send_signal(signal.SIGSTOP)
        replies = await faults.assert_exact()
        check_gap("stall seen by the router", replies, faults.warm_bound(260, 10 * faults.step_seconds))
        assert max(reply.longest_gap for reply in replies) < 10 * (DEAD_AFTER_SECONDS + HEARTBEAT_SECONDS)
        faults.world.directory.replicas.remove(site)
        await site.close()
