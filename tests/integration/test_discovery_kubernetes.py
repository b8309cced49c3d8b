"""Discovery by the real client library against a Kubernetes API over HTTP that breaks in every way that it may."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.clock import SystemClock
from cluster.discovery.kubernetes import follow_controllers, follow_machines
from cluster.discovery.objects import Machine
from tests.support.kubernetes_api import KubernetesApi

HURRIED_SECONDS = 0.01


class HurriedClock(SystemClock):
    """Waits between attempts are short."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, HURRIED_SECONDS))


def piece(name: str, region: str, address: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"argosy.io/region": region}},
        "addressType": "IPv4",
        "ports": [{"name": "controller", "port": 50052}],
        "endpoints": [{"addresses": [address]}],
    }


class Seen:
    """What discovery has told, newest last."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def until(self, holds: Callable[[Any], bool]) -> None:
        async with asyncio.timeout(30):
            while not (self.told and holds(self.told[-1])):
                await asyncio.sleep(0.005)

    async def controllers(self, **expected: str) -> None:
        wanted = {region: (f"{address}:50052",) for region, address in expected.items()}
        await self.until(lambda told: told == wanted)


def play(tmp_path: Path, scenario: Callable[[KubernetesApi, Seen], Awaitable[None]]) -> None:
    """Follow controllers while `scenario` changes the API."""

    async def run() -> None:
        async with KubernetesApi(tmp_path) as api:
            seen = Seen()
            following = asyncio.create_task(follow_controllers(api.account, (), HurriedClock(), seen.told.append))
            try:
                await scenario(api, seen)
                assert not following.done()
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    asyncio.run(run())


def test_controllers_come_move_and_go(tmp_path: Path) -> None:
    async def scenario(api: KubernetesApi, seen: Seen) -> None:
        await seen.controllers()
        await api.put("endpointslices", piece("a", "west", "10.0.0.1"))
        await seen.controllers(west="10.0.0.1")
        await api.put("endpointslices", piece("b", "east", "10.0.0.2"))
        await api.put("endpointslices", piece("a", "west", "10.0.0.3"))
        await seen.controllers(west="10.0.0.3", east="10.0.0.2")
        await api.delete("endpointslices", "a")
        await seen.controllers(east="10.0.0.2")
        lists = [query for kind, query in api.requests if "watch" not in query]
        assert [query["labelSelector"] for query in lists] == ["argosy.io/region"]

    play(tmp_path, scenario)


def test_a_watch_that_breaks_loses_nothing(tmp_path: Path) -> None:
    async def scenario(api: KubernetesApi, seen: Seen) -> None:
        await api.put("endpointslices", piece("a", "west", "10.0.0.1"))
        await seen.controllers(west="10.0.0.1")
        for number in range(5):
            api.cut()
            await api.put("endpointslices", piece("a", "west", f"10.0.1.{number}"))
            await seen.controllers(west=f"10.0.1.{number}")

    play(tmp_path, scenario)


def test_410_gone_lists_again_and_drops_what_was_deleted_meanwhile(tmp_path: Path) -> None:
    async def scenario(api: KubernetesApi, seen: Seen) -> None:
        await api.put("endpointslices", piece("a", "west", "10.0.0.1"))
        await api.put("endpointslices", piece("b", "east", "10.0.0.2"))
        await seen.controllers(west="10.0.0.1", east="10.0.0.2")
        api.cut()
        await api.delete("endpointslices", "a")
        api.forget()
        await seen.controllers(east="10.0.0.2")
        await api.put("endpointslices", piece("c", "west", "10.0.0.9"))
        await seen.controllers(west="10.0.0.9", east="10.0.0.2")

    play(tmp_path, scenario)


def test_403_is_said_once_keeps_what_was_known_and_heals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(api: KubernetesApi, seen: Seen) -> None:
        await api.put("endpointslices", piece("a", "west", "10.0.0.1"))
        await seen.controllers(west="10.0.0.1")
        api.forbidden.add("endpointslices")
        api.cut()
        asked = len(api.requests)
        async with asyncio.timeout(30):
            while len(api.requests) < asked + 5:
                await asyncio.sleep(0.005)
        assert seen.told[-1] == {"west": ("10.0.0.1:50052",)}
        api.forbidden.clear()
        await api.put("endpointslices", piece("a", "west", "10.0.0.2"))
        await seen.controllers(west="10.0.0.2")

    with caplog.at_level(logging.INFO, "cluster.discovery"):
        play(tmp_path, scenario)
    refusals = [record.message for record in caplog.records if "may not list" in record.message]
    assert len(refusals) == 1
    assert "endpointslices in here" in refusals[0]


def test_a_rotated_token_is_used_at_once(tmp_path: Path) -> None:
    async def scenario(api: KubernetesApi, seen: Seen) -> None:
        await seen.controllers()
        api.rotate("second")
        api.cut()
        await api.put("endpointslices", piece("a", "west", "10.0.0.1"))
        await seen.controllers(west="10.0.0.1")
        assert {"Bearer first", "Bearer second"} == set(api.tokens)

    play(tmp_path, scenario)


def test_a_cordon_is_seen_for_every_pod_of_the_node_and_taken_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with KubernetesApi(tmp_path) as api:
            seen = Seen()
            following = asyncio.create_task(follow_machines(api.account, HurriedClock(), seen.told.append))
            node: dict[str, Any] = {"metadata": {"name": "n1", "labels": {"zone": "z"}}, "spec": {}}
            status = {"podIP": "10.1.0.1", "phase": "Running"}
            await api.put("nodes", node)
            await api.put("pods", {"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}, "status": status})
            await seen.until(lambda told: told == {"10.1.0.1": Machine("n1", {"zone": "z"})})
            await api.put("nodes", {**node, "spec": {"unschedulable": True}})
            await seen.until(lambda told: told["10.1.0.1"].leaving == "node n1 is cordoned")
            await api.put("nodes", node)
            await seen.until(lambda told: told["10.1.0.1"].leaving == "")
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(scenario())


def test_a_router_without_kubernetes_never_imports_its_library() -> None:
    code = "import sys, cluster.router.main, cluster.cli.up; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
