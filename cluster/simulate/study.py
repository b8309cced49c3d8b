"""The comparison: which load each policy holds, at its default and at its best tuning, and what goodput looks like
around it. Knows which runs that takes and what they amount to; runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from cluster.simulate.jobs import Job, Result
from cluster.simulate.policies import OURS, POLICIES
from cluster.simulate.policies.base import Setting

RunAll = Callable[[Sequence[Job]], list[Result]]


@dataclass(frozen=True, slots=True)
class Case:
    """One table: a trace and a scenario."""

    title: str
    trace: str
    seconds: float
    """Of the trace, from its start."""
    load: float
    """Where tunings are compared and searches begin: near what a good policy holds."""
    scenario: dict[str, Any] = field(default_factory=dict)
    """Fields of `Scenario` that differ from the default."""


@dataclass(frozen=True, slots=True)
class Row:
    """One policy in one case."""

    policy: str
    best: Setting
    """Of the default and the tunings, the one with the most goodput at the case's load."""
    held_default: list[float]
    """Load held by seed."""
    held_best: list[float]
    curve: dict[float, float]
    """Goodput by load at the best tuning, mean over seeds."""
    at_load: dict[str, float]
    """Summary at the case's load, best tuning, mean over seeds."""

    @property
    def held(self) -> float:
        """At the better of default and tuning."""
        return max(mean(self.held_default), mean(self.held_best))


@dataclass(frozen=True, slots=True)
class Table:
    """A case with its rows, best first."""

    case: Case
    seeds: tuple[int, ...]
    rows: list[Row]

    @property
    def lead(self) -> float:
        """Load held by our rule over that of the best other one."""
        others = [row.held for row in self.rows if row.policy != OURS]
        return next(row.held for row in self.rows if row.policy == OURS) / max(others)


def compare(
    case: Case, policies: Sequence[str], seeds: Sequence[int], run_all: RunAll, *, precision: float, curve: bool
) -> Table:
    """Make one table.

    Args:
        seeds: each policy holds a load for each of them; tunings are compared at the first.
        precision: of the loads held.
        curve: also measure goodput from half to 1.4 times the case's load.
    """
    best = _best_tunings(case, policies, seeds[0], run_all)
    tried: list[tuple[str, Setting]] = []
    for policy in policies:
        tried.extend((policy, setting) for setting in _unique([POLICIES[policy].default, best[policy][0]]))
    searches = [
        _job("search", case, policy, setting, case.load * _guess(best[policy][1]), seed, precision)
        for policy, setting in tried
        for seed in seeds
    ]
    held = iter(run_all(searches))
    loads = {_key(policy, setting): [next(held).load for _ in seeds] for policy, setting in tried}
    grid = [round(case.load * factor, 2) for factor in (0.5, 0.7, 0.85, 1.15, 1.4)] if curve else []
    grid = sorted([*grid, case.load])
    points = [
        _job("measure", case, policy, best[policy][0], load, seed)
        for policy in policies
        for load in grid
        for seed in seeds
    ]
    measured = iter(run_all(points))
    rows = []
    for policy in policies:
        summaries = {load: _mean([next(measured).summary for _ in seeds]) for load in grid}
        rows.append(
            Row(
                policy,
                best[policy][0],
                loads[_key(policy, POLICIES[policy].default)],
                loads[_key(policy, best[policy][0])],
                {load: summary["goodput"] for load, summary in summaries.items()},
                summaries[case.load],
            )
        )
    return Table(case, tuple(seeds), sorted(rows, key=lambda row: -row.held))


def stress(
    cases: Sequence[Case], settings: dict[str, Setting], seeds: Sequence[int], run_all: RunAll
) -> list[dict[str, float]]:
    """Goodput at each case's load, by policy, mean over seeds: for scenarios in which something is wrong."""
    jobs = [
        _job("measure", case, policy, setting, case.load, seed)
        for case in cases
        for policy, setting in settings.items()
        for seed in seeds
    ]
    results = iter(run_all(jobs))
    return [{policy: mean(next(results).summary["goodput"] for _ in seeds) for policy in settings} for _ in cases]


def _best_tunings(case: Case, policies: Sequence[str], seed: int, run_all: RunAll) -> dict[str, tuple[Setting, float]]:
    """By policy, the setting of most goodput at the case's load, and that goodput."""
    tried = [(policy, setting) for policy in policies for setting in _settings(policy)]
    results = run_all([_job("measure", case, policy, setting, case.load, seed) for policy, setting in tried])
    best: dict[str, tuple[Setting, float]] = {}
    for (policy, setting), result in zip(tried, results, strict=True):
        goodput = result.summary["goodput"]
        if policy not in best or goodput > best[policy][1]:
            best[policy] = setting, goodput
    return best


def _settings(policy: str) -> list[Setting]:
    kind = POLICIES[policy]
    return [kind.default, *kind.tunings]


def _guess(goodput: float) -> float:
    """About how far from this load the one with 90 % goodput is."""
    return 1.1 if goodput > 0.95 else 0.4 + 0.65 * goodput


def _job(kind: Any, case: Case, policy: str, setting: Setting, load: float, seed: int, precision: float = 0.01) -> Job:
    return Job(kind, case.trace, case.seconds, policy, setting, load, seed, case.scenario, precision)


def _key(policy: str, setting: Setting) -> tuple[str, tuple[tuple[str, float], ...]]:
    return policy, tuple(sorted(setting.items()))


def _unique(settings: Sequence[Setting]) -> list[Setting]:
    return [setting for index, setting in enumerate(settings) if setting not in settings[:index]]


def _mean(summaries: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: mean(summary[name] for summary in summaries) for name in summaries[0]}
