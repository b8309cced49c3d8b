"""Dashboards and alerts against the real Prometheus: every panel finds data, every alert fires when it should."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control.controller import replica_figures
from cluster.telemetry import ControllerMetrics
from cluster.telemetry.exporter import exported
from tests.support.fault_world import FaultWorld, asks, fault_world
from tests.support.prometheus_server import Prometheus, running_prometheus, tool
from tests.support.router_world import run_async
from tools.monitoring.__main__ import CHART, ROOT, files, main
from tools.monitoring.alerts import ALERTS, RECORDS
from tools.monitoring.panels import DASHBOARDS

RULES = ROOT / CHART / "alerts" / "argosy.yaml"
VARIABLE = re.compile(r"\$(region|model|replica)\b")


def panel_queries() -> list[tuple[str, str]]:
    """(where, query) of every panel as Grafana would send it with everything selected."""
    found = []
    for path in sorted((ROOT / CHART / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query = VARIABLE.sub(".*", target["expr"]).replace("$__rate_interval", "30s")
                found.append((f"{dashboard['title']}: {panel['title']}: {target['legendFormat']}", query))
    return found


@run_async
async def test_every_panel_of_a_running_cluster_shows_data(smollm2_dir: Path, tmp_path: Path) -> None:
    """Two replicas of two stages under load; one loses a rank, so that failures have happened too."""
    async with fault_world(smollm2_dir, tmp_path, pp=2, tp=2, max_batch_tokens=32) as faults:
        controller = ControllerMetrics()
        with (
            exported(faults.world.metrics.registry, "127.0.0.1:0", "router") as router,
            exported(controller.registry, "127.0.0.1:0", "controller", lambda: _targets(faults, own)) as address,
        ):
            assert router is not None
            assert address is not None
            own = {"argosy-router": router, "argosy-controller": address}
            with running_prometheus(tmp_path, f"http://{address}/targets", [RULES]) as prometheus:
                enough = asyncio.Event()
                load = asyncio.create_task(_load(faults, controller, enough))
                try:
                    await _until_scraped_twice(prometheus)
                    await _kill_a_busy_rank(faults)
                    await _until_all_have_data(prometheus)
                finally:
                    enough.set()
                    await load
                states = {target["health"] for target in await asyncio.to_thread(prometheus.targets)}
                assert "up" in states
                await faults.assert_exact()


def _targets(faults: FaultWorld, own: dict[str, str]) -> list[dict[str, Any]]:
    """As the controller's own list has it."""
    found = list(own.items())
    found += [("argosy-engine", site.current.addresses.metrics) for site in faults.sites if site.current]
    return [{"targets": [address], "labels": {"job": job, "region": "here"}} for job, address in found]


async def _load(faults: FaultWorld, controller: ControllerMetrics, enough: asyncio.Event) -> None:
    """Requests until there are enough. What a controller would count is counted from statuses."""
    rng = random.Random(1)
    while not enough.is_set():
        replies = [faults.ask(ask) for ask in asks(4, rng, 40)]
        statuses = [await site.current.status() for site in faults.sites if site.current]
        controller.observe(map(replica_figures, statuses))
        for status in statuses:
            controller.building(status.model, status.replica_id)
            controller.ready(status.model, 1.0)
        await asyncio.gather(*replies)


async def _until_scraped_twice(prometheus: Prometheus) -> None:
    """An increase before the second scrape of a series is one that Prometheus never sees."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(
            prometheus.query, "count_over_time(argosy_router_continuations_total[1m]) > 1"
        ):
            await asyncio.sleep(0.2)


async def _kill_a_busy_rank(faults: FaultWorld) -> None:
    """Of a replica that has streams, which then move."""
    async with asyncio.timeout(60):
        while True:
            for site in faults.sites:
                if site.current and any(live.has_begun for live in site.current.engine._engine._live.values()):
                    os.kill(site.current.workers[1].pid, signal.SIGKILL)
                    return
            await asyncio.sleep(0.01)


async def _until_all_have_data(prometheus: Prometheus) -> None:
    """A rate needs two scrapes of a series."""
    wanted = dict(panel_queries()) | {record.name: record.name for record in RECORDS}
    end = time.monotonic() + 100
    while wanted:
        for where, query in list(wanted.items()):
            result = await asyncio.to_thread(prometheus.query, query)
            if any(sample["value"][1] != "NaN" for sample in result):
                del wanted[where]
        assert time.monotonic() < end, f"no data: {wanted}"
        await asyncio.sleep(0.5)


Series = dict[str, str]
"""Values by series, in promtool's notation, one a minute for half an hour."""

QUIET: Series = {
    'argosy_router_ready_replicas{region="r", model="m"}': "2x30",
    'argosy_router_requests_total{model="m", reason="OK"}': "0+600x30",
    'argosy_router_requests_total{model="m", reason="REPLICA_LOST"}': "0+6x30",
    'argosy_router_requests_total{model="m", reason="INVALID_FIELD"}': "0+300x30",
    'argosy_router_continuations_total{model="m"}': "0+6x30",
    'argosy_router_first_token_seconds_bucket{model="m", le="1"}': "0+600x30",
    'argosy_router_first_token_seconds_bucket{model="m", le="10"}': "0+600x30",
    'argosy_router_first_token_seconds_bucket{model="m", le="+Inf"}': "0+600x30",
    'argosy_router_token_seconds_bucket{model="m", le="0.1"}': "0+600x30",
    'argosy_router_token_seconds_bucket{model="m", le="1"}': "0+600x30",
    'argosy_router_token_seconds_bucket{model="m", le="+Inf"}': "0+600x30",
    'argosy_controller_replicas{model="m", state="ready"}': "2x30",
    'argosy_controller_replicas{model="m", state="failed"}': "0x30",
    'argosy_controller_replica_failures_total{model="m", replica="m/0"}': "0+0x10 1+0x20",
    'argosy_engine_waiting_requests{model="m", replica="m/0"}': "3 0 2 5 0 1 0 4 0 2 0x20",
    'argosy_engine_kv_used_blocks{model="m", replica="m/0"}': "80x30",
    'argosy_engine_kv_blocks{model="m", replica="m/0"}': "100x30",
    'argosy_engine_preemptions_total{model="m", replica="m/0"}': "0+1x30",
    'argosy_engine_active_seconds_total{model="m", replica="m/0"}': "0+60x30",
    'argosy_rank_busy_seconds_total{model="m", replica="m/0", stage="0", rank="0", phase="decode"}': "0+50x30",
    'argosy_rank_busy_seconds_total{model="m", replica="m/0", stage="0", rank="1", phase="decode"}': "0+50x30",
    'argosy_rank_collective_seconds_total{model="m", replica="m/0", stage="0", rank="0"}': "0+6x30",
    'argosy_rank_collective_seconds_total{model="m", replica="m/0", stage="0", rank="1"}': "0+9x30",
    'argosy_router_ledger_lag_seconds{region="r"}': "0.01x30",
    'up{job="argosy-engine", instance="a:1"}': "1x30",
}
"""A region that does well, with the odd failure."""

TROUBLE: dict[str, Series] = {
    "ArgosyNoReplica": {'argosy_router_ready_replicas{region="r", model="m"}': "0x30"},
    "ArgosyErrors": {'argosy_router_requests_total{model="m", reason="REPLICA_LOST"}': "0+90x30"},
    "ArgosySlowFirstToken": {'argosy_router_first_token_seconds_bucket{model="m", le="1"}': "0+400x30"},
    "ArgosySlowTokens": {'argosy_router_token_seconds_bucket{model="m", le="0.1"}': "0+400x30"},
    "ArgosyReplicaMissing": {'argosy_controller_replicas{model="m", state="failed"}': "1x30"},
    "ArgosyReplicaBreaks": {
        'argosy_controller_replica_failures_total{model="m", replica="m/0"}': "0+0x20 1 2 3 4 4 4 4 4 4 4"
    },
    "ArgosyStreamsMove": {'argosy_router_continuations_total{model="m"}': "0+90x30"},
    "ArgosyRequestsWait": {'argosy_engine_waiting_requests{model="m", replica="m/0"}': "3x30"},
    "ArgosyKvFull": {'argosy_engine_kv_used_blocks{model="m", replica="m/0"}': "97x30"},
    "ArgosyPreemptions": {'argosy_engine_preemptions_total{model="m", replica="m/0"}': "0+30x30"},
    "ArgosyBubbles": {
        'argosy_rank_busy_seconds_total{model="m", replica="m/0", stage="0", rank="0", phase="decode"}': "0+20x30",
        'argosy_rank_busy_seconds_total{model="m", replica="m/0", stage="0", rank="1", phase="decode"}': "0+20x30",
    },
    "ArgosySlowRank": {
        'argosy_rank_collective_seconds_total{model="m", replica="m/0", stage="0", rank="1"}': "0+30x30"
    },
    "ArgosyLedgerLags": {'argosy_router_ledger_lag_seconds{region="r"}': "12x30"},
    "ArgosyNotScraped": {'up{job="argosy-engine", instance="a:1"}': "0x30"},
}
"""What turns a quiet region into one where exactly that alert fires."""


def test_each_alert_fires_in_its_trouble_and_in_no_other(tmp_path: Path) -> None:
    assert TROUBLE.keys() == {alert.name for alert in ALERTS}
    worlds = {"quiet": QUIET} | {name: QUIET | series for name, series in TROUBLE.items()}
    tests = []
    for world, series in worlds.items():
        assert series.keys() == QUIET.keys(), world
        rows = [{"series": name, "values": values} for name, values in series.items()]
        # promql_expr_test and not alert_rule_test: that one wants every annotation spelt out.
        firing = [{"labels": f'{{alertname="{world}"}}', "value": 1}] if world != "quiet" else []
        expression = 'count by (alertname) (ALERTS{alertstate="firing"}) > 0'
        check = {"expr": expression, "eval_time": "29m", "exp_samples": firing}
        tests.append({"name": world, "interval": "1m", "input_series": rows, "promql_expr_test": [check]})
    file = tmp_path / "alerts_test.yaml"
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    run = subprocess.run([tool("promtool"), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    headings = re.findall(r"^## (\w+)\n\*(\w+)\.\*", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert headings == [(alert.name, alert.severity) for alert in ALERTS]


def test_generated_files_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out
    assert len(files()) == len(DASHBOARDS) + 2


def test_panels_are_of_some_dashboard_and_queries_of_the_catalogue() -> None:
    from cluster.telemetry.catalogue import CATALOGUE

    known = {metric.name for metrics in CATALOGUE.values() for metric in metrics}
    for where, query in panel_queries():
        for name in re.findall(r"\bargosy_\w+", query):
            assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known or name in known, (where, name)
