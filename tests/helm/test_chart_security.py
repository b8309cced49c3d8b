"""What the rendered objects keep apart: accounts, tokens, users, certificates, networks."""

from __future__ import annotations

import base64
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import PeersConfig, parse_config
from cluster.peers import Identity, Role, roles_of_certificate
from tests.support.chart_values import ci, environment, every_way, objects
from tests.support.helm import Object, containers, named, of_kind, pod_templates


@every_way
def test_nothing_runs_as_root_or_writes_to_its_image(file: Path | None, kuberay: bool) -> None:
    for name, template in pod_templates(objects(file, kuberay)):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(template):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"]["drop"] == ["ALL"], name
            added = security["capabilities"].get("add", [])
            assert set(added) <= {"IPC_LOCK"}, name
            # What is written goes somewhere: every place that the environment names is on a volume.
            mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            for variable in ("HOME", "ARGOSY_STATE", "HF_HOME", "NUMBA_CACHE_DIR"):
                path = environment(container).get(variable)
                assert path is None or not mounts or path.startswith("/tmp"), name
            assert container["image"].rpartition(":")[2] not in ("", "latest"), name


@every_way
def test_only_locked_memory_is_added_where_adapters_are(file: Path | None, kuberay: bool) -> None:
    for name, template in pod_templates(objects(file, kuberay)):
        for container in containers(template):
            limits = container.get("resources", {}).get("limits", {})
            adapters = [key for key in limits if key.startswith("rdma/") or key.endswith("/efa")]
            assert bool(adapters) == ("add" in container["securityContext"]["capabilities"]), name


@every_way
def test_no_pod_has_a_token_of_the_api_that_it_does_not_need(file: Path | None, kuberay: bool) -> None:
    found = objects(file, kuberay)
    config = yaml.safe_load(file.read_text()) if file else {}
    wanted = bool(config.get("discovery", {}).get("enabled"))
    for name, template in pod_templates(found):
        asks_the_api = wanted and ("router" in name or "head" in name)
        assert template["spec"]["automountServiceAccountToken"] is asks_the_api, name
    for account in of_kind(found, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert bool(of_kind(found, "ClusterRole") + of_kind(found, "Role")) == wanted


@every_way
def test_every_pod_is_under_a_policy_and_the_default_is_to_deny(file: Path | None, kuberay: bool) -> None:
    found = objects(file, kuberay)
    deny = named(found, "NetworkPolicy", "r-argosy-default-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not set(deny) & {"ingress", "egress"}
    ray = named(found, "NetworkPolicy", "r-argosy-ray")["spec"]
    (components,) = ray["podSelector"]["matchExpressions"]
    for name, template in pod_templates(found):
        labels = template["metadata"]["labels"]
        assert deny["podSelector"]["matchLabels"].items() <= labels.items(), name
        if name.startswith(("StatefulSet", "RayCluster")):
            assert labels["app.kubernetes.io/component"] in components["values"]
    # Ray's ports are open to the release's own pods and, where regions were listed, to their networks.
    for rule in ray["ingress"]:
        assert rule["from"], "a rule without `from` lets everybody in"
    ports = [[(port["port"], port.get("endPort")) for port in rule.get("ports", [])] for rule in ray["ingress"]]
    assert ports == [[], [(50052, None)], [(9464, 9466)]], "routers and nodes, the job that applies, Prometheus"


@every_way
def test_ray_never_starts_without_its_token(file: Path | None, kuberay: bool) -> None:
    seen = 0
    for _, template in pod_templates(objects(file, kuberay)):
        for container in template["spec"]["containers"]:
            if container["command"][0] == "ray" or "up" in container["command"]:
                has = environment(container)
                assert has["RAY_AUTH_MODE"] == "token"
                assert set(has["RAY_AUTH_TOKEN"]) == {"secretKeyRef"}
                seen += 1
    assert seen >= 3


def test_discovery_may_read_what_it_reads_and_no_more() -> None:
    found = ci("observed")
    rules = {
        (role["kind"], role["metadata"]["name"]): [
            (rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in role["rules"]
        ]
        for role in [*of_kind(found, "Role"), *of_kind(found, "ClusterRole")]
    }
    look = ["list", "watch"]
    assert rules == {
        ("Role", "r-argosy-router"): [(["discovery.k8s.io"], ["endpointslices"], look)],
        ("Role", "r-argosy-ray"): [([""], ["pods"], look)],
        ("ClusterRole", "serving-r-argosy-nodes"): [([""], ["nodes"], look)],
    }
    bound = {
        (binding["roleRef"]["kind"], binding["roleRef"]["name"], subject["name"])
        for binding in [*of_kind(found, "RoleBinding"), *of_kind(found, "ClusterRoleBinding")]
        for subject in binding["subjects"]
    }
    assert bound == {
        ("Role", "r-argosy-router", "r-argosy-router"),
        ("Role", "r-argosy-ray", "r-argosy-ray"),
        ("ClusterRole", "serving-r-argosy-nodes", "r-argosy-ray"),
    }
    pool = named(found, "StatefulSet", "r-argosy-pool-cpu")["spec"]["template"]["spec"]
    sleep = pool["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    config = parse_config(yaml.safe_load(named(found, "ConfigMap", "r-argosy")["data"]["argosy.yaml"]))
    assert config.discovery.kubernetes is not None
    assert sleep > config.discovery.kubernetes.drain_seconds
    assert pool["terminationGracePeriodSeconds"] >= sleep + 30, "Ray drains its node after that"


def test_certificates_reach_those_who_use_them() -> None:
    found = ci("bare-metal")
    config = parse_config(yaml.safe_load(named(found, "ConfigMap", "r-argosy")["data"]["argosy.yaml"]))
    assert config.router.tls is not None
    paths = {str(config.router.tls.certificate), str(config.router.tls.key), str(config.router.tls.client_authority)}
    (router,) = named(found, "Deployment", "r-argosy-router")["spec"]["template"]["spec"]["containers"]
    mounts = {mount["mountPath"] for mount in router["volumeMounts"]}
    assert {path.rpartition("/")[0] for path in paths} <= mounts
    assert "tcpSocket" in router["readinessProbe"], "the kubelet's gRPC probe speaks no TLS"
    roles = {"router": {"router"}, "head": {"controller", "operator"}, "pool-nvl72": {"engine", "worker"}}
    for name, template in pod_templates(found):
        for part, has in roles.items():
            if name.endswith(part):
                for container in template["spec"]["containers"]:
                    shown = {
                        mount["mountPath"] for mount in container["volumeMounts"] if "/peers/" in mount["mountPath"]
                    }
                    assert shown == {f"/etc/argosy/peers/{role}" for role in has}
    secrets = {volume["secret"]["secretName"] for volume in _peer_volumes(found)}
    assert secrets == {f"argosy-peer-{role}" for role in ("router", "controller", "operator", "engine", "worker")}


def _peer_volumes(found: list[Object]) -> list[Object]:
    volumes = [volume for _, template in pod_templates(found) for volume in template["spec"].get("volumes", [])]
    return [volume for volume in volumes if volume["name"].startswith("peer-")]


def test_issued_certificates_name_the_roles() -> None:
    issued = {item["spec"]["secretName"]: item["spec"] for item in of_kind(ci("observed"), "Certificate")}
    for role in ("router", "controller", "engine", "worker", "operator"):
        assert issued[f"r-argosy-peer-{role}"]["dnsNames"] == [f"{role}.argosy.internal"]
    (public,) = [item["spec"] for item in of_kind(ci("aws"), "Certificate")]
    assert "api.example.com" in public["dnsNames"]


def test_generated_certificates_are_what_processes_ask_for(tmp_path: Path) -> None:
    for secret in of_kind(objects(None), "Secret"):
        if "-peer-" in secret["metadata"]["name"]:
            folder = tmp_path / secret["metadata"]["name"].rpartition("-")[2]
            folder.mkdir()
            for name, data in secret["data"].items():
                (folder / name).write_bytes(base64.b64decode(data))
    section = PeersConfig(
        certificate=tmp_path / "{role}" / "tls.crt",
        key=tmp_path / "{role}" / "tls.key",
        authority=tmp_path / "{role}" / "ca.crt",
    )
    for caller, called in ((Role.ROUTER, Role.ENGINE), (Role.WORKER, Role.ENGINE), (Role.OPERATOR, Role.CONTROLLER)):
        shown = handshake(section.identity(caller), section.identity(called), called.dns_name)
        assert roles_of_certificate(shown) == {caller}
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(section.identity(Role.ROUTER), section.identity(Role.WORKER), Role.ENGINE.dns_name)


def handshake(caller: Identity, called: Identity, name: str) -> dict[str, Any] | None:
    """Connect in memory; the caller's certificate as the called one sees it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context, server_context = caller.client_context(), called.server_context()
    assert client_context
    assert server_context
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return server.getpeercert()
