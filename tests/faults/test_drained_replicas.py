"""T16 without Ray: replicas drained and rebuilt in turn, in the middle of streams that outlast their grace."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.fault_world import asks, check_gap, fault_world
from tests.support.router_world import run_async

pytestmark = pytest.mark.model

GRACE_SECONDS = 0.3


@run_async
async def test_t16_what_does_not_finish_in_its_grace_goes_on_elsewhere(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, tp=1) as faults:
        listed = faults.world.directory.replicas
        for site in faults.sites:
            for ask in asks(8, random.Random(site.replica_id), 200):
                faults.ask(ask)
            assert site.current
            engine = site.current.engine
            await faults.world.until(lambda engine=engine: engine._engine.step >= 20)
            site.is_healing = False
            listed.remove(site)
            await engine.stop(GRACE_SECONDS)
            await site.open(site.epochs[-1] + 1)
            listed.append(site)
            await faults.world.until_ready(2)
        replies = await faults.assert_exact()
        assert faults.continuations >= 4, "more than the grace was left to do"
        check_gap("T16 without Ray", replies, faults.warm_bound(260, 10 * faults.step_seconds))
        assert [site.epochs for site in faults.sites] == [[1, 2], [1, 2]]
