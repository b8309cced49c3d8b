"""What the pods of the chart's defaults would run, run here: Ray head and node, region, router; a client streams."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from argosy.v1 import inference_pb2, inference_pb2_grpc
from cluster.config import default_store
from tests.support.helm import Object, named, of_kind, render
from tests.support.pods import POD_IP, PodMachine, Running
from tests.support.region import free_ports, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = "smollm2-135m-instruct"
READY = "Ready after"
CONFIG = "/etc/argosy/config/argosy.yaml"
PODS = (("StatefulSet", "head"), ("Deployment", "router"))


@dataclass
class World:
    """A release that runs."""

    machine: PodMachine
    containers: dict[str, Object]
    grace_seconds: int
    """What the router's pod gets."""
    region: Running
    router: Running
    address: str
    """The router's."""
    key: str


@pytest.fixture(scope="module")
def world(smollm2_dir: Path) -> Iterator[World]:
    gcs, head_raylet, raylet, router, controller, *metrics = free_ports(8)
    objects = render(sets={"ray.ports": {"gcs": gcs, "raylet": head_raylet, "dashboard": 8265}})
    pods = {kind: named(objects, kind, f"r-argosy-{name}")["spec"]["template"]["spec"] for kind, name in PODS}
    pool = named(objects, "StatefulSet", "r-argosy-pool-cpu")["spec"]["template"]["spec"]
    containers = {
        "head": pods["StatefulSet"]["containers"][0],
        "region": pods["StatefulSet"]["containers"][1],
        "pull": pool["initContainers"][0],
        "worker": pool["containers"][0],
        "router": pods["Deployment"]["containers"][0],
        "apply": next(
            job["spec"]["template"]["spec"]["containers"][0]
            for job in of_kind(objects, "Job")
            if "-apply-" in job["metadata"]["name"]
        ),
    }
    addresses = {
        "r-argosy-head.serving.svc": POD_IP,
        "r-argosy-controller.serving.svc:50052": f"127.0.0.1:{controller}",
        "0.0.0.0:50052": f"127.0.0.1:{controller}",
        "0.0.0.0:50051": f"127.0.0.1:{router}",
        **{f"0.0.0.0:{port}": f"127.0.0.1:{mine}" for port, mine in zip((9464, 9465, 9466), metrics, strict=True)},
        "/models": str(default_store()),
    }
    # Not pytest's own directory: the paths of Ray's sockets must be short.
    directory = Path(tempfile.mkdtemp(prefix="pods-", dir="/tmp"))
    machine = PodMachine(directory, objects, addresses)
    try:
        machine.start(containers["head"])
        region = machine.start(containers["region"])
        machine.start(containers["worker"], node_manager_port=str(raylet))
        running = machine.start(containers["router"])
        machine.run(containers["router"], "argosy", "tenants", "set", "acme", "-f", CONFIG)
        key = machine.run(containers["router"], "argosy", "keys", "create", "acme", "-f", CONFIG)
        region.wait_said(READY, 200)
        grace = pods["Deployment"]["terminationGracePeriodSeconds"]
        yield World(machine, containers, grace, region, running, f"127.0.0.1:{router}", key.strip())
    finally:
        machine.end()
        shutil.rmtree(directory)


def probe(world: World, name: str) -> bool:
    """What the kubelet would find."""
    container = world.containers["router"]
    asked = container[f"{name}Probe"]["grpc"]
    assert asked["port"] == next(port["containerPort"] for port in container["ports"] if port["name"] == "grpc")
    with grpc.insecure_channel(world.address) as channel:
        request = health_pb2.HealthCheckRequest(service=asked.get("service", ""))
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def stream(world: World, channel: grpc.Channel, max_tokens: int) -> Any:
    message = inference_pb2.ChatMessage(role=inference_pb2.ROLE_USER, content="What is the capital of France?")
    request = inference_pb2.GenerateRequest(
        model=MODEL, chat=inference_pb2.Chat(messages=[message]), max_tokens=max_tokens
    )
    request.sampling.temperature = 0.0
    request.stop.ignore_end_of_text = max_tokens > 50
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return stub.Generate(request, timeout=120, metadata=(("authorization", f"Bearer {world.key}"),))


def epochs(world: World) -> list[str]:
    status = json.loads(world.machine.run(world.containers["region"], "argosy", "status", "--json", "-f", CONFIG))
    return [replica["epoch"] for replica in status["replicas"]]


def test_a_client_streams_with_a_key_and_not_without(world: World) -> None:
    wait_until(lambda: probe(world, "readiness"), 60, "readiness")
    assert probe(world, "liveness")
    with grpc.insecure_channel(world.address) as channel:
        events = list(stream(world, channel, 24))
        assert "Paris" in "".join(event.delta.text for event in events)
        stranger = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stranger.Generate(inference_pb2.GenerateRequest(model=MODEL, prompt="x"), timeout=30))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_what_is_in_the_store_costs_the_init_container_nothing(world: World) -> None:
    pull = world.containers["pull"]
    assert world.machine.run(pull, *pull["command"]).strip() == str(default_store() / MODEL)


def test_the_job_that_applies_reaches_the_controller(world: World) -> None:
    job = world.containers["apply"]
    assert "Nothing differs" in world.machine.run(job, *job["command"])


def test_the_region_container_restarts_under_a_stream(world: World) -> None:
    """Its end leaves controller and replicas; its next start takes them over, at the epoch that they had."""
    with grpc.insecure_channel(world.address) as channel:
        before = epochs(world)
        events = stream(world, channel, 150)
        first = [next(events) for _ in range(3)]
        world.region.process.send_signal(signal.SIGTERM)
        assert world.region.process.wait(60) == 0, world.region.text
        world.region = world.machine.start(world.containers["region"])
        world.region.wait_said(READY, 120)
        rest = list(events)
    assert first[-1].WhichOneof("event") == "delta"
    assert rest[-1].finished.usage.completion_tokens == 150
    assert epochs(world) == before


def test_a_router_that_is_replaced_ends_its_streams_in_the_time_its_pod_has(world: World) -> None:
    with grpc.insecure_channel(world.address) as channel:
        events = stream(world, channel, 100)
        next(events)
        world.router.process.send_signal(signal.SIGTERM)
        rest = list(events)
        assert rest[-1].finished.usage.completion_tokens == 100
    assert world.router.process.wait(world.grace_seconds) == 0, world.router.text
