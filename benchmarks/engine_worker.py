"""A worker process that writes down when each of its passes began and ended, for `bench_engine_overhead`."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.replicas import worker_spec

from cluster.launch import WorkerSpec
from cluster.worker.actor import WorkerActor
from cluster.worker.bootstrap import load_shard
from cluster.worker.state import WorkerState
from cluster.worker.stepper import Runner
from model.batch import Batch, Int32Array, Sampled


class TimedRunner:
    """A runner, and (rows, tokens, begin, end) of its passes."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.passes: list[tuple[int, int, float, float]] = []

    def run(self, batch: Batch) -> Sampled | None:
        begin = time.perf_counter()
        sampled = self._runner.run(batch)
        self.passes.append((batch.num_rows, batch.num_tokens, begin, time.perf_counter()))
        return sampled

    def feed_back(self, token_ids: Int32Array) -> None:
        self._runner.feed_back(token_ids)

    def take_feed_back(self, count: int) -> Int32Array:
        return self._runner.take_feed_back(count)

    @property
    def waited_seconds(self) -> float:
        return self._runner.waited_seconds


def load_timed(spec: WorkerSpec, state: WorkerState, wait_rendezvous: Callable[[float], str]) -> TimedRunner:
    """The real bootstrap; the passes are written when the process ends."""
    runner = TimedRunner(load_shard(spec, state, wait_rendezvous))
    leave = state.before_exit

    def before_exit() -> None:
        leave()
        place = spec.coordinates
        path = Path(os.environ["PASSES"]) / f"{place.stage}-{place.tp_rank}.json"
        path.write_text(json.dumps(runner.passes))

    state.before_exit = before_exit
    return runner


if __name__ == "__main__":
    worker = WorkerActor(worker_spec(json.loads(os.environ["WORKER_SPEC"])), bootstrap=load_timed)
    asyncio.run(worker.start())
    threading.Event().wait()  # the actor's own threads end the process
