"""What a running router, engine and controller export, read as Prometheus reads it: over HTTP, from its text."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster import rpc
from cluster.control.service import Directory, RegionView
from cluster.telemetry import RouterMetrics
from cluster.telemetry.catalogue import CATALOGUE, MAX_TENANTS, OTHER_TENANTS, Metric
from cluster.telemetry.exporter import exported, reachable
from cluster.telemetry.router import RequestFigures
from tests.support.fault_world import asks, fault_world
from tests.support.router_world import run_async

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def fetch(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as response:
        return response.read().decode()


def families(text: str) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def total(text: str, name: str, **labels: str) -> float:
    """Sum of the samples of that name whose labels include these."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def assert_as_catalogued(text: str, metrics: tuple[Metric, ...]) -> None:
    """Every family of the catalogue is there with its labels, and none that is not in it."""
    found, known = families(text), {metric.name: metric for metric in metrics}
    assert found.keys() == known.keys()
    for name, metric in known.items():
        assert found[name].type == metric.kind
        assert found[name].documentation == metric.help
        for sample in found[name].samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels), sample


@run_async
async def test_a_running_replica_tells_what_its_ranks_did(smollm2_dir: Path, tmp_path: Path) -> None:
    """Two stages of two ranks: tokens, time, work and waits of each, in the engine's one scrape."""
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=2, pp=2, max_batch_tokens=32) as faults:
        for ask in asks(6, random.Random(1), 30):
            faults.ask(ask)
        replies = await faults.assert_exact()
        site = faults.sites[0].current
        assert site is not None
        await faults.world.until(lambda: site.engine._figures.active_seconds > 0)
        await asyncio.sleep(0)  # ranks report every heartbeat: wait until they have told all their passes
        async with asyncio.timeout(20):
            while True:
                text = await asyncio.to_thread(fetch, site.addresses.metrics)
                steps = total(text, "argosy_engine_step_seconds_count")
                if total(text, "argosy_rank_steps_total", stage="1", rank="0") == steps:
                    break
                await asyncio.sleep(0.1)
        assert_as_catalogued(text, CATALOGUE["engine"])
        prompts = sum(reply.finished.usage.prompt_tokens for reply in replies)
        generated = sum(reply.finished.usage.completion_tokens for reply in replies)
        computed = total(text, "argosy_engine_cache_missed_tokens_total")
        assert computed + total(text, "argosy_engine_cache_hit_tokens_total") >= prompts
        assert total(text, "argosy_engine_generated_tokens_total") >= generated
        assert total(text, "argosy_engine_queue_seconds_count") == 6
        assert total(text, "argosy_engine_kv_blocks") == 512
        assert total(text, "argosy_engine_epoch") == 1
        active = total(text, "argosy_engine_active_seconds_total")
        for stage in "01":
            for rank in "01":
                at = {"stage": stage, "rank": rank}
                busy = total(text, "argosy_rank_busy_seconds_total", **at)
                assert 0 < busy <= active * 1.05 + 0.5
                assert total(text, "argosy_rank_flops_total", phase="prefill", **at) > 0
                assert total(text, "argosy_rank_memory_bytes_total", phase="decode", **at) > 0
        charged = faults.world.prometheus("argosy_router_tenant_device_seconds_total", tenant="anonymous")
        assert 0 < charged <= 4 * active * 1.05 + 0.5
        assert faults.world.prometheus("argosy_router_queue_seconds_count", model="smollm2") == 6


@run_async
async def test_a_router_exports_its_catalogue(smollm2_dir: Path, tmp_path: Path) -> None:
    async with fault_world(smollm2_dir, tmp_path, count=1, tp=1) as faults:
        faults.ask(asks(1, random.Random(1), 8)[0])
        await faults.assert_exact()
        await faults.world.until(lambda: faults.world.prometheus("argosy_router_ready_replicas", model="smollm2") == 1)
        with exported(faults.world.metrics.registry, "127.0.0.1:0", "metrics.router") as address:
            assert address is not None
            text = await asyncio.to_thread(fetch, address)
    assert_as_catalogued(text, CATALOGUE["router"])
    assert total(text, "argosy_router_requests_total", reason="OK") == 1
    lost = 'argosy_router_requests_total{model="smollm2",reason="REPLICA_LOST"} 0.0'
    assert lost in text, "a series that began with its first failure would hide it"
    assert total(text, "gen_ai_client_token_usage_tokens_sum", gen_ai_token_type="output") == 8
    assert total(text, "argosy_router_token_seconds_count") == 1


def test_tenants_are_bounded() -> None:
    metrics = RouterMetrics()
    for number in range(3 * MAX_TENANTS):
        metrics.observe(RequestFigures("m", f"tenant-{number}", 10, 0, 5, 1, 1.0, device_seconds=0.5))
    tenants = {
        sample.labels["tenant"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "tenant" in sample.labels
    }
    assert len(tenants) == MAX_TENANTS + 1
    value = metrics.registry.get_sample_value("argosy_router_tenant_device_seconds_total", {"tenant": OTHER_TENANTS})
    assert value == MAX_TENANTS  # 2 × MAX_TENANTS of them, half a second each


def test_a_taken_port_is_said_and_another_one_used(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with caplog.at_level(logging.WARNING), exported(_registry(), f"127.0.0.1:{port}", "metrics.router") as address:
            assert address is not None
            assert not address.endswith(f":{port}")
            assert "argosy_test_total" in fetch(address)
    assert f"metrics.router: 127.0.0.1:{port}" in caplog.text


def test_the_port_serves_metrics_and_targets_only_and_ends() -> None:
    with exported(_registry(), "127.0.0.1:0", "k", lambda: [{"targets": ["a:1"], "labels": {}}]) as address:
        assert address is not None
        assert json.loads(fetch(address, "/targets")) == [{"targets": ["a:1"], "labels": {}}]
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            fetch(address, "/etc/passwd")
        refused.value.close()
    with pytest.raises(urllib.error.URLError):
        fetch(address)


def test_off_is_off() -> None:
    with exported(_registry(), None, "k") as address:
        assert address is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [(None, ""), ("0.0.0.0:9", "10.0.0.1:9"), ("127.0.0.1:9", "127.0.0.1:9"), ("localhost:9", "localhost:9")],
)
def test_an_address_that_others_can_use_is_told(address: str | None, expected: str) -> None:
    assert reachable(address, "10.0.0.1") == expected


def test_names_follow_the_convention() -> None:
    every = [metric for metrics in CATALOGUE.values() for metric in metrics]
    assert len({metric.name for metric in every}) == len(every)
    for metric in every:
        assert re.fullmatch(r"(argosy|vllm|gen_ai)[a-z0-9_:]*", metric.name), metric.name
        assert not metric.name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert metric.help.endswith(".")


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("argosy_test", "A count.", registry=registry).inc()
    return registry


@run_async
async def test_a_router_that_listens_everywhere_is_listed_by_the_address_that_it_calls_from() -> None:
    view, server = RegionView("here"), rpc.server()
    control_pb2_grpc.add_DirectoryServiceServicer_to_server(Directory(view), server)
    address = rpc.listen(server, "127.0.0.1:0", "controller.listen")
    await server.start()
    async with rpc.channel(address) as channel:
        request = control_pb2.WatchReplicasRequest(router_id="router_1", metrics_address="0.0.0.0:9465")
        call = control_pb2_grpc.DirectoryServiceStub(channel).WatchReplicas(request)
        await call.read()
        assert view.router_metrics == {"router_1": "127.0.0.1:9465"}
        call.cancel()
        async with asyncio.timeout(20):
            while view.router_metrics:
                await asyncio.sleep(0.02)
    await server.stop(None)
