"""Runs of the simulator as work for several processes: one run, or the search for the load that a policy holds.

Jobs and results travel as JSON lines between this process and `python -m cluster.simulate.jobs` children. Knows how to
run a job, not which ones make a study.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.simulate.fleet import Fleet
from cluster.simulate.goodput import Summary
from cluster.simulate.policies import POLICIES
from cluster.simulate.policies.base import Setting
from cluster.simulate.scenario import Scenario
from cluster.simulate.search import load_held
from cluster.simulate.traces import TRACES
from cluster.simulate.workload import Workload

GOOD_ENOUGH = 0.9
"""Goodput at which load counts as held."""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to find out."""

    kind: Literal["measure", "search"]
    """Goodput at `load`, or the load held, looked for from `load` on."""
    trace: str
    seconds: float
    """Of the trace, from its start."""
    policy: str
    setting: Setting
    load: float
    seed: int
    scenario: dict[str, Any] = field(default_factory=dict)
    """Fields of `Scenario` that differ from the default."""
    precision: float = 0.01
    """Of a search."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job."""

    load: float
    """As asked, or the load held."""
    summary: dict[str, float]
    """At that load."""


class Runner:
    """Runs jobs in this process; keeps the workloads it has made."""

    def __init__(self) -> None:
        self._workloads: dict[tuple[str, float, int], Workload] = {}

    def run(self, job: Job) -> Result:
        """Do it."""
        if job.kind == "measure":
            return Result(job.load, asdict(self._play(job, job.load, 0.0)))
        tried: dict[float, Summary] = {}

        def holds(load: float) -> bool:
            tried[load] = self._play(job, load, GOOD_ENOUGH)
            return tried[load].goodput >= GOOD_ENOUGH

        held = load_held(holds, job.load, job.precision)
        # A policy that holds no load is shown at the least one tried.
        return Result(held, asdict(tried[held or min(tried)]))

    def _play(self, job: Job, load: float, give_up_below: float) -> Summary:
        scenario = Scenario(**job.scenario)
        workload = self._workload(job, scenario)
        fleet = Fleet(scenario, workload, POLICIES[job.policy], job.setting, load, job.seed)
        return fleet.run(give_up_below)

    def _workload(self, job: Job, scenario: Scenario) -> Workload:
        key = job.trace, job.seconds, scenario.block_size
        if key not in self._workloads:
            trace = TRACES[job.trace]().first(job.seconds)
            self._workloads[key] = Workload.of(trace, scenario.scheduler_config())
        return self._workloads[key]


def run_all(jobs: Sequence[Job], processes: int, done: Callable[[], None]) -> list[Result]:
    """Results in the order of `jobs`; `done` is called as each one ends.

    Raises:
        RuntimeError: a child process failed; its own words are on stderr.
    """
    results: list[Result | None] = [None] * len(jobs)
    waiting: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    # Searches first: the longest jobs should not be the last to begin.
    for entry in sorted(enumerate(jobs), key=lambda entry: entry[1].kind == "measure"):
        waiting.put(entry)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            with _child() as ask:
                while not failures:
                    try:
                        index, job = waiting.get_nowait()
                    except queue.Empty:
                        return
                    results[index] = ask(job)
                    done()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=serve) for _ in range(min(processes, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError("a simulation failed") from failures[0]
    return [result for result in results if result is not None]


@contextlib.contextmanager
def _child() -> Iterator[Callable[[Job], Result]]:
    """A process that answers jobs until the block is left."""
    command = [sys.executable, "-m", "cluster.simulate.jobs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(job: Job) -> Result:
            requests.write(json.dumps(asdict(job)) + "\n")
            requests.flush()
            answer = answers.readline()
            if not answer:
                raise RuntimeError(f"the process that ran {job} ended")
            return Result(**json.loads(answer))

        try:
            yield ask
            requests.close()
        except BaseException:
            process.kill()
            raise


def main() -> None:
    """Answer jobs from standard input, one JSON object a line, until it ends."""
    runner = Runner()
    for line in sys.stdin:
        print(json.dumps(asdict(runner.run(Job(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
