"""T01 and T02 on the real model: sixteen streams, a rank lost in the middle, sixteen answers as if nothing had been."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.fault_world import asks, check_gap, fault_world
from tests.support.router_world import run_async

pytestmark = [pytest.mark.model, pytest.mark.faults_long, pytest.mark.timeout(1500)]

STREAMS = int(os.environ.get("ARGOSY_FAULT_STREAMS", "16"))
TOKENS = 200


@pytest.mark.parametrize(
    ("test", "fault"),
    [("T01 real model", signal.SIGKILL), ("T02 real model", signal.SIGSTOP)],
    ids=["T01-killed", "T02-stopped"],
)
@run_async
async def test_sixteen_real_answers_are_the_undisturbed_ones(
    smollm2_dir: Path, tmp_path: Path, test: str, fault: signal.Signals
) -> None:
    requests = asks(STREAMS, random.Random(1), TOKENS)
    async with fault_world(smollm2_dir, tmp_path, real=True) as faults:
        begun = time.monotonic()
        undisturbed = await asyncio.gather(*(faults.ask(ask, 600) for ask in requests))
        engines = [site.current.engine._engine for site in faults.sites if site.current]
        faults.step_seconds = (time.monotonic() - begun) / max(engine.step for engine in engines)
        steps = engines[0].step
        running = [faults.ask(ask, 600) for ask in requests]
        await faults.world.until(lambda: engines[0].step >= steps + 50, 300)
        victim = faults.sites[0].current.workers[1]
        victim.send_signal(fault)
        disturbed = await asyncio.gather(*running)
        assert faults.continuations >= STREAMS // 4, "the streams of the lost replica moved"
        for before, after in zip(undisturbed, disturbed, strict=True):
            for choice in range(2):
                assert after.token_ids(choice) == before.token_ids(choice)
                assert after.text(choice) == before.text(choice)
        check_gap(test, disturbed, faults.warm_bound(260, 10 * faults.step_seconds))
        await faults.world.until(lambda: faults.sites[0].epochs == [1, 2], 120)
