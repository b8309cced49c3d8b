"""What routers and controllers make of what discovery tells them."""

from __future__ import annotations

import asyncio

import pytest

from cluster.clock import SystemClock
from cluster.config import KubernetesDiscovery, parse_config
from cluster.control.machines import Machines
from cluster.control.topology import LINK_DOMAIN_LABEL, RACK_LABEL
from cluster.discovery.account import Account
from cluster.discovery.objects import Machine
from cluster.errors import ConfigurationError
from cluster.ids import RegionId
from cluster.router.following import _discover
from cluster.router.found import FollowedRegions
from cluster.router.regions import Region

HOME = Region(RegionId("home"), ("10.0.0.1:1",), is_home=True)
FAR = Region(RegionId("far"), ("10.9.0.1:1",), expected_round_trip=0.1)


def follow(steps: list[dict[str, tuple[str, ...]]]) -> tuple[list[frozenset[Region]], list[str]]:
    """The regions followed after each step, and the names of those whose task was ended."""
    ended: list[str] = []

    def check(address: str) -> None:
        if address.startswith("192."):
            raise ConfigurationError(f"{address} is in plain text")

    async def run() -> list[frozenset[Region]]:
        async def forever(region: Region) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(region.name)

        followed = FollowedRegions((HOME, FAR), check, forever)
        running = asyncio.create_task(followed.run())
        seen = [followed.regions]
        for step in steps:
            await asyncio.sleep(0)
            followed.found(step)
            await asyncio.sleep(0)
            seen.append(followed.regions)
        before = list(ended)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(ended) == len(before) + len(seen[-1])
        ended[:] = before
        return seen

    return asyncio.run(run()), ended


def test_found_addresses_take_the_place_of_configured_ones_and_give_it_back() -> None:
    found = {"home": ("10.0.0.5:1", "10.0.0.6:1"), "new": ("10.7.0.1:1",)}
    (first, second, third), ended = follow([found, {}])
    assert first == third == {HOME, FAR}
    moved = Region(RegionId("home"), ("10.0.0.5:1", "10.0.0.6:1"), is_home=True)
    assert second == {moved, FAR, Region(RegionId("new"), ("10.7.0.1:1",))}
    assert ended == ["home", "home", "new"]


def test_what_did_not_change_is_not_disturbed() -> None:
    found = {"new": ("10.7.0.1:1",)}
    _, ended = follow([found, found, dict(found)])
    assert ended == []


def test_an_address_that_must_not_be_called_is_left_out() -> None:
    (_, regions), _ = follow([{"new": ("192.0.2.1:1",), "home": ("192.0.2.1:1", "10.0.0.5:1")}])
    assert {region.name: region.controllers for region in regions} == {"home": ("10.0.0.5:1",), "far": ("10.9.0.1:1",)}


def test_labels_of_nodes_reach_placement_and_departures_become_orders_once() -> None:
    orders: list[tuple[str, bool]] = []
    machines = Machines(KubernetesDiscovery(), lambda host, leave: orders.append((host, leave)))
    labels = {"nvidia.com/gpu.clique": "c.1", "topology.kubernetes.io/zone": "z", "other": "x"}
    machines.take({"10.1.0.1": Machine("a", labels), "10.1.0.2": Machine("b", {})})
    assert machines.labels("10.1.0.1") == {LINK_DOMAIN_LABEL: "c.1", RACK_LABEL: "z"}
    assert machines.labels("10.1.0.2") == machines.labels("elsewhere") == {}
    cordoned = Machine("a", labels, "node a is cordoned")
    machines.take({"10.1.0.1": cordoned})
    machines.take({"10.1.0.1": cordoned})
    machines.take({"10.1.0.1": Machine("a", labels)})
    assert orders == [("10.1.0.1", True), ("10.1.0.1", False)]


def test_outside_a_pod_discovery_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    config = parse_config({"models": [{"name": "m"}], "discovery": {"kubernetes": {}}})
    assert config.discovery.kubernetes is not None
    followed = FollowedRegions.__new__(FollowedRegions)
    with pytest.raises(ConfigurationError, match="not in a pod; list `regions` instead"):
        _discover(config.discovery.kubernetes, SystemClock(), followed)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ConfigurationError, match="automountServiceAccountToken"):
        Account.of_this_pod()
