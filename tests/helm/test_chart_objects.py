"""What the rendered objects must be: who finds whom, how pods start and end, what reaches them."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from cluster.cli import argosy
from cluster.config import parse_config
from cluster.control.topology import LINK_DOMAIN_LABEL, RACK_LABEL
from cluster.discovery.objects import CONTROLLER_PORT, REGION_LABEL
from cluster.telemetry.catalogue import LIVE_STREAMS
from tests.support.chart_values import ci, environment, every_way, objects
from tests.support.helm import Object, containers, named, of_kind, pod_templates, render


@every_way
def test_every_selector_finds_the_pods_that_it_means(file: Path | None, kuberay: bool) -> None:
    found = objects(file, kuberay)
    labels = {name: template["metadata"]["labels"] for name, template in pod_templates(found)}

    def matched(selector: dict[str, str]) -> list[str]:
        return [name for name, has in labels.items() if selector.items() <= has.items()]

    for item in found:
        selector = item.get("spec", {}).get("selector") or {}
        selector = selector.get("matchLabels", selector)
        name = item["metadata"]["name"]
        if item["kind"] in ("Deployment", "StatefulSet"):
            assert matched(selector) == [f"{item['kind']}/{name}"]
            assert set(selector) == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}
        elif item["kind"] == "Service" and not name.endswith("-pools"):
            (pod,) = matched(selector)
            assert "router" in pod if "router" in name else "head" in pod
            ports = {port["name"]: port for port in _template(found, pod)["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in item["spec"]["ports"]} <= set(ports)
        elif item["kind"] == "PodDisruptionBudget":
            (pod,) = matched(selector)
            assert pod.rpartition("/")[2].removeprefix("r-argosy-").removeprefix("pool-") in name
            assert item["spec"]["maxUnavailable"] == 1


def _template(found: list[Object], name: str) -> Object:
    return dict(pod_templates(found))[name]


@every_way
def test_every_command_is_one_with_those_options(file: Path | None, kuberay: bool) -> None:
    from ray.scripts.scripts import start

    for name, template in pod_templates(objects(file, kuberay)):
        for container in containers(template):
            program, *words = container["command"]
            if program == "install":
                continue
            group: click.Group = argosy if program == "argosy" else click.Group(commands={"start": start})
            command = group.get_command(click.Context(group), words[0])
            assert command is not None, f"{name}: {container['command']}"
            # Parsed, not run; a mistake is a UsageError.
            with command.make_context(words[0], words[1:]):
                pass


def test_a_router_has_time_to_end_its_streams() -> None:
    found = render(sets={"config.router.drain_seconds": 90, "router.preStopSeconds": 7})
    spec = named(found, "Deployment", "r-argosy-router")["spec"]
    (router,) = spec["template"]["spec"]["containers"]
    assert router["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 7 + 90 + 10
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_change_of_models_restarts_routers_and_leaves_ray_alone() -> None:
    """Pods start anew when their template differs in anything."""

    def templates(found: list[Object]) -> dict[str, Object]:
        return {name: pod for name, pod in pod_templates(found) if not name.startswith("Job/")}

    before = templates(render())
    models = templates(render(sets={"config.models": [{"name": "gemma3-270m"}, {"name": "smollm2-135m-instruct"}]}))
    image = templates(render(sets={"images.engine.tag": "0.2.0"}))
    assert {name for name in before if models[name] != before[name]} == {"Deployment/r-argosy-router"}
    assert {name for name in before if image[name] != before[name]} == {
        "StatefulSet/r-argosy-head",
        "StatefulSet/r-argosy-pool-cpu",
    }


def test_a_controller_is_found_by_its_region() -> None:
    service = named(ci("aws"), "Service", "r-argosy-controller")
    assert service["metadata"]["labels"][REGION_LABEL] == "us-east"
    assert [port["name"] for port in service["spec"]["ports"]] == [CONTROLLER_PORT]


def test_routers_share_a_node_with_their_file_and_spread_without_one() -> None:
    sqlite = named(objects(None), "Deployment", "r-argosy-router")["spec"]["template"]["spec"]
    (together,) = sqlite["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert together["topologyKey"] == "kubernetes.io/hostname"
    assert named(objects(None), "PersistentVolumeClaim", "r-argosy-ledger")
    postgres = named(ci("aws"), "Deployment", "r-argosy-router")["spec"]["template"]["spec"]
    assert "affinity" not in postgres
    assert {spread["topologyKey"] for spread in postgres["topologySpreadConstraints"]} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    assert not [claim for claim in of_kind(ci("aws"), "PersistentVolumeClaim") if "ledger" in claim["metadata"]["name"]]
    (router,) = postgres["containers"]
    assert environment(router)["PGPASSWORD"]["secretKeyRef"]["name"] == "ledger-password"


def test_unlike_gpus_are_pools_of_their_own() -> None:
    (cluster,) = of_kind(ci("gcp"), "RayCluster")
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    commands = {name: group["template"]["spec"]["containers"][0]["command"] for name, group in groups.items()}
    assert "--num-gpus=8" in commands["h200"]
    assert "--num-gpus=1" in commands["l4"]
    assert "--labels=argosy.io/pool=l4" in commands["l4"]
    limits = groups["h200"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 8
    assert groups["l4"]["replicas"] == 2
    assert cluster["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"


def test_adapters_link_domains_and_shared_memory_reach_the_pod() -> None:
    template = named(ci("bare-metal"), "StatefulSet", "r-argosy-pool-nvl72")["spec"]["template"]
    pod = template["spec"]
    assert pod["hostNetwork"] is True
    assert pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert template["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "kube-system/ib-a,kube-system/ib-b"
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "nvidia.com/gpu.clique"
    (ray,) = pod["containers"]
    # As placement reads it: a tensor group may span these nodes.
    labels = next(word for word in ray["command"] if word.startswith("--labels=")).removeprefix("--labels=").split(",")
    assert f"{LINK_DOMAIN_LABEL}=nvl72" in labels
    assert f"{RACK_LABEL}=r1" in labels
    assert ray["resources"]["limits"]["rdma/hca_shared_devices_a"] == 1
    assert environment(ray)["NCCL_IB_HCA"] == "mlx5"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in ray["volumeMounts"]
    efa = named(ci("aws"), "StatefulSet", "r-argosy-pool-h200")["spec"]["template"]["spec"]
    resources = efa["containers"][0]["resources"]
    assert resources["limits"]["vpc.amazonaws.com/efa"] == resources["requests"]["vpc.amazonaws.com/efa"] == 32
    assert resources["limits"]["hugepages-2Mi"] == "5120Mi"
    (preferred,) = efa["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["topologyKey"] == "topology.k8s.aws/network-node-layer-3"


def test_a_job_fills_a_shared_store_and_pods_wait_for_it() -> None:
    (job,) = [job for job in of_kind(ci("aws"), "Job") if "-pull-" in job["metadata"]["name"]]
    command = ["argosy", "pull", "--file=/etc/argosy/config/argosy.yaml"]
    (puller,) = job["spec"]["template"]["spec"]["containers"]
    assert puller["command"] == command
    assert environment(puller)["HF_TOKEN"]["secretKeyRef"] == {"name": "hub-token", "key": "token"}
    worker = named(ci("aws"), "StatefulSet", "r-argosy-pool-h200")["spec"]["template"]["spec"]
    assert worker["initContainers"][0]["command"] == command
    claim = named(ci("aws"), "PersistentVolumeClaim", "r-argosy-models")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    without = render(sets={"models.cache.pull.enabled": False})
    assert not [name for name, pod in pod_templates(without) if [c for c in containers(pod) if c["name"] == "pull"]]


def test_a_new_configuration_is_a_new_job_that_tells_the_controller() -> None:
    before, same, after = (
        [job for job in of_kind(found, "Job") if "-apply-" in job["metadata"]["name"]]
        for found in (objects(None), render(), render(sets={"config.region": "eu"}))
    )
    assert before[0]["metadata"]["name"] == same[0]["metadata"]["name"] != after[0]["metadata"]["name"]
    (apply,) = before[0]["spec"]["template"]["spec"]["containers"]
    assert "--address=r-argosy-controller.serving.svc:50052" in apply["command"]
    assert "/etc/argosy/peers/operator" in [mount["mountPath"] for mount in apply["volumeMounts"]]


def test_routers_scale_by_our_own_metric() -> None:
    found = ci("observed")
    (scaler,) = of_kind(found, "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == LIVE_STREAMS.name
    assert scaler["spec"]["scaleTargetRef"]["name"] == "r-argosy-router"
    assert "replicas" not in named(found, "Deployment", "r-argosy-router")["spec"], "two would set it"
    (monitor,) = of_kind(found, "ServiceMonitor")
    service = named(found, "Service", "r-argosy-router-metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    for kind in ("HorizontalPodAutoscaler", "ServiceMonitor", "ScrapeConfig"):
        assert not of_kind(objects(None), kind), "off by default"


def test_the_http_api_is_open_where_it_is_wanted() -> None:
    for found, wanted in ((objects(None), False), (ci("observed"), True)):
        config = parse_config(yaml.safe_load(named(found, "ConfigMap", "r-argosy")["data"]["argosy.yaml"]))
        assert (config.router.http_listen == "0.0.0.0:8080") == wanted
        service = {port["name"]: port for port in named(found, "Service", "r-argosy-router")["spec"]["ports"]}
        assert ("http" in service) == wanted
        opened = named(found, "NetworkPolicy", "r-argosy-router")["spec"]["ingress"][0]["ports"]
        assert (8080 in [port["port"] for port in opened]) == wanted


def test_other_regions_get_slices_of_limits() -> None:
    found = ci("bare-metal")
    config = parse_config(yaml.safe_load(named(found, "ConfigMap", "r-argosy")["data"]["argosy.yaml"]))
    (port,) = named(found, "Service", "r-argosy-router-quota")["spec"]["ports"]
    assert config.router.quota_listen == f"0.0.0.0:{port['port']}"
    assert config.regions[0].quota == ("argosy-quota.oslo.example.internal:50053",)
    rule = named(found, "NetworkPolicy", "r-argosy-router")["spec"]["ingress"][1]
    assert [peer["ipBlock"]["cidr"] for peer in rule["from"]] == ["10.1.0.0/16", "10.2.0.0/16"]
    assert [port["port"] for port in rule["ports"]] == [50053]


def test_two_releases_share_a_namespace() -> None:
    names = [{(item["kind"], item["metadata"]["name"]) for item in render(release=name)} for name in ("a", "b")]
    assert names[0] & names[1] == set()
