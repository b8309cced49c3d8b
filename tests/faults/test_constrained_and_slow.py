"""Answers with a given shape that lose a rank (T03), and clients that read slowly (T26); see docs/reliability.md."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import jsonschema
import pytest

from argosy.v1 import inference_pb2 as api
from tests.support.fault_world import FaultWorld, TimedReply, asks, check_gap, fault_world, report
from tests.support.router_world import request, run_async
from tests.support.schemas import SCHEMAS

pytestmark = pytest.mark.model

SHAPED = 6


def shaped(number: int) -> api.GenerateRequest:
    """An answer that must fit a schema."""
    schema = json.dumps(SCHEMAS["person"])
    return request(
        prompt=f"Person number {number}: ",
        max_tokens=60,
        sampling={"seed": number, "temperature": 0.8},
        response_format={"json_schema": schema},
    )


@pytest.mark.faults_long
@pytest.mark.timeout(900)
@run_async
async def test_t03_a_shape_is_kept_over_the_loss_of_a_rank(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, real=True) as faults:

        async def answers() -> list[asyncio.Task[TimedReply]]:
            return [faults.ask(shaped(number), 600) for number in range(SHAPED)]

        undisturbed = await asyncio.gather(*await answers())
        running = await answers()
        engines = [site.current.engine._engine for site in faults.sites if site.current]
        begun = [engine.step for engine in engines]
        await faults.world.until(lambda: engines[0].step >= begun[0] + 15, 300)
        assert faults.sites[0].current
        faults.sites[0].current.workers[1].kill()
        disturbed = await asyncio.gather(*running)
        assert faults.continuations >= 1
        for before, after in zip(undisturbed, disturbed, strict=True):
            assert after.token_ids() == before.token_ids()
            assert after.text() == before.text()
            if after.finished.choices[0].reason == api.FINISH_REASON_STOP:
                jsonschema.validate(json.loads(after.text()), SCHEMAS["person"])
        report("T03", SHAPED, 0)


async def read_slowly(faults: FaultWorld, ask: api.GenerateRequest, seconds: float) -> TimedReply:
    reply = TimedReply()
    async for event in faults.world.inference.Generate(ask, timeout=120):
        reply.add(event)
        await asyncio.sleep(seconds)
    return reply


@run_async
async def test_t26_slow_readers_get_all_and_hold_up_nobody(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1) as faults:
        engine = faults.sites[0].current.engine._engine
        slow = asks(4, random.Random(20), 150)
        reading = [asyncio.create_task(read_slowly(faults, ask, 0.05)) for ask in slow]
        await faults.world.until(lambda: engine.step >= 5)
        for ask in asks(6, random.Random(21), 100):
            faults.ask(ask)
        before = engine.step
        replies = await faults.assert_exact()
        assert engine.step - before <= 150, "the others get a token every step"
        check_gap("T26", replies, faults.warm_bound(100, 0.0))
        for ask, reply in zip(slow, await asyncio.gather(*reading), strict=True):
            for choice in range(ask.num_choices):
                assert len(reply.token_ids(choice)) == 150
