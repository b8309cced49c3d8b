"""The simulated fleet: the production code inside, lumped steps equal to single ones, losses and refusals counted."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

import cluster.replica.scheduler
import cluster.router.choose
import cluster.simulate
from cluster.simulate.fleet import Fleet
from cluster.simulate.policies import OURS, POLICIES, marginal_cost
from cluster.simulate.policies.base import HOLD, REJECT, PolicyKind
from cluster.simulate.replica import SimulatedReplica
from cluster.simulate.scenario import Scenario
from cluster.simulate.traces import Trace, load_azure, load_mooncake
from cluster.simulate.workload import Workload


@pytest.fixture(scope="module")
def mooncake() -> Trace:
    return load_mooncake().first(40)


def run(trace: Trace, policy: str = OURS, load: float = 4.0, seed: int = 1, **changes: object) -> Fleet:
    scenario = Scenario(**changes)  # type: ignore[arg-type]
    fleet = Fleet(
        scenario,
        Workload.of(trace, scenario.scheduler_config()),
        POLICIES[policy],
        POLICIES[policy].default,
        load,
        seed,
    )
    fleet.run()
    return fleet


def test_the_simulator_calls_the_production_code() -> None:
    replica = SimulatedReplica(0, 0, Scenario().scheduler_config(), Scenario().costs)
    assert type(replica.scheduler) is cluster.replica.scheduler.Scheduler
    assert marginal_cost.choose_replica is cluster.router.choose.choose_replica


def test_the_simulator_holds_no_copy_of_it() -> None:
    def names(path: Path) -> set[str]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return {node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef))}

    package = Path(cluster.simulate.__file__).parent
    ours = set().union(*(names(path) for path in package.rglob("*.py")))
    for module in (cluster.router.choose, cluster.replica.scheduler, cluster.replica.block_manager):
        production = {name for name in names(Path(module.__file__ or "")) if not name.startswith("_")}
        # Words that any class may have.
        assert not ours & production - {"submit", "load", "stored", "evicted", "register", "release", "take", "hold"}


@pytest.mark.parametrize("slack", [False, True])
@pytest.mark.parametrize("trace_name", ["mooncake", "azure"])
def test_lumped_steps_equal_single_ones(trace_name: str, slack: bool) -> None:
    trace, load = (load_mooncake().first(60), 3.0) if trace_name == "mooncake" else (load_azure().first(60), 6.0)
    lumped = run(trace, load=load, slack_order=slack)
    single = run(trace, load=load, slack_order=slack, lump=False)
    for a, b in zip(lumped.outcomes, single.outcomes, strict=True):
        assert a.served_by == b.served_by
        assert a.cached_tokens == b.cached_tokens
        assert a.num_tokens == b.num_tokens
        assert a.first_token == pytest.approx(b.first_token, abs=1e-6)
        assert a.last_token == pytest.approx(b.last_token, abs=1e-6)
    for mine, theirs in zip(lumped.replicas, single.replicas, strict=True):
        assert mine.busy_seconds == pytest.approx(theirs.busy_seconds, rel=1e-9)
        assert mine.scheduler.load().hit_tokens == theirs.scheduler.load().hit_tokens


def test_lumping_skips_most_decode_steps(mooncake: Trace) -> None:
    lumped, single = run(mooncake, load=2.0), run(mooncake, load=2.0, lump=False)
    assert steps(lumped) < steps(single) / 3


def steps(fleet: Fleet) -> int:
    return sum(replica.scheduler._step for replica in fleet.replicas)


def test_a_finer_block_changes_little(mooncake: Trace) -> None:
    """512 tokens is what the trace resolves: hits can only differ by what is lost at a prompt's last, partial block."""
    coarse, fine = run(mooncake, load=3.0), run(mooncake, load=3.0, block_size=64)
    tokens = sum(outcome.num_prompt_tokens for outcome in coarse.outcomes)
    hits = [sum(outcome.cached_tokens for outcome in fleet.outcomes) for fleet in (coarse, fine)]
    assert abs(hits[0] - hits[1]) < 0.02 * tokens


def test_every_request_ends_once_with_all_its_tokens(mooncake: Trace) -> None:
    fleet = run(mooncake)
    for outcome, request in zip(fleet.outcomes, mooncake.requests, strict=True):
        assert outcome.num_tokens == request.num_output_tokens
        assert outcome.first_token is not None
        assert outcome.last_token is not None
        assert outcome.arrival < outcome.first_token <= outcome.last_token
    assert all(replica.scheduler.blocks.num_used == 0 for replica in fleet.replicas)
    assert all(not replica.flights for replica in fleet.replicas)


def test_a_seed_repeats_itself_and_another_differs(mooncake: Trace) -> None:
    first, again, other = run(mooncake, seed=3), run(mooncake, seed=3), run(mooncake, seed=4)
    assert first.outcomes == again.outcomes
    assert first.outcomes != other.outcomes


def test_a_lost_region_loses_no_request(mooncake: Trace) -> None:
    fleet = run(mooncake, lost_region=0)
    assert any(outcome.moves for outcome in fleet.outcomes)
    assert all(outcome.last_token is not None for outcome in fleet.outcomes)
    half = fleet.outcomes[-1].arrival / 2
    late = [outcome for outcome in fleet.outcomes if outcome.arrival > half + 2]
    assert late
    assert all(fleet.region_of[outcome.served_by] != 0 for outcome in late)


def test_giving_up_early_only_when_the_goodput_is_out_of_reach(mooncake: Trace) -> None:
    scenario = Scenario()
    workload = Workload.of(mooncake, scenario.scheduler_config())
    kind = POLICIES["round robin"]
    whole = Fleet(scenario, workload, kind, kind.default, 8.0, 1).run()
    early = Fleet(scenario, workload, kind, kind.default, 8.0, 1).run(give_up_below=0.9)
    assert whole.goodput < 0.9
    assert early.goodput < 0.9
    assert Fleet(scenario, workload, kind, kind.default, 0.5, 1).run(give_up_below=0.9).goodput >= 0.9


class Refuser:
    def choose(self, ask: object, replicas: object) -> int:
        return REJECT


class Holder:
    """Keeps everything for two seconds."""

    def choose(self, ask: object, replicas: list[object]) -> int:
        return HOLD if ask.now < 2.0 else replicas[0].index  # type: ignore[attr-defined]


def test_refused_requests_are_failures(mooncake: Trace) -> None:
    scenario = Scenario()
    kind = PolicyKind("refuser", lambda facts, setting: Refuser(), {})  # type: ignore[arg-type, return-value]
    summary = Fleet(scenario, Workload.of(mooncake, scenario.scheduler_config()), kind, {}, 1.0, 1).run()
    assert summary.goodput == 0
    assert summary.unserved == 1
    assert summary.ttft_p50 == math.inf


def test_held_requests_wait_at_the_router_in_order(mooncake: Trace) -> None:
    scenario = Scenario()
    kind = PolicyKind("holder", lambda facts, setting: Holder(), {}, may_hold=True)  # type: ignore[arg-type, return-value]
    fleet = Fleet(scenario, Workload.of(mooncake, scenario.scheduler_config()), kind, {}, 4.0, 1)
    fleet.run()
    early = [outcome for outcome in fleet.outcomes if outcome.arrival < 1.5 and outcome.first_token is not None]
    assert early
    assert all((outcome.first_token or 0) >= 2.0 for outcome in early)
