"""The chart under a real helm: each file of values is linted, rendered, packaged, and valid for Kubernetes' schemas."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from cluster.config import parse_config
from tests.support.chart_values import VALUES, name_of, objects
from tests.support.helm import CHART, ROOT, helm, named, of_kind, pod_templates, refused
from tests.support.kubernetes_schemas import validator

KUBERNETES = ("1.30", "1.34", "1.37")
CUSTOM = {
    "RayCluster": "ray.io/v1",
    "Certificate": "cert-manager.io/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScrapeConfig": "monitoring.coreos.com/v1alpha1",
}
"""Kinds of operators, which Kubernetes' own schemas do not know."""


@cache
def check(text: str) -> None:
    """Raises what is wrong with an object, given as JSON: many are the same in several files, and checks take long."""
    found = json.loads(text)
    if found["kind"] in CUSTOM:
        assert found["apiVersion"] == CUSTOM[found["kind"]]
        return
    for version in KUBERNETES:
        validator(found["kind"], found["apiVersion"], version).validate(found)


@pytest.mark.parametrize("file", VALUES, ids=name_of)
def test_lint_finds_nothing(file: Path | None) -> None:
    done = helm("lint", CHART, "--strict", *([f"--values={file}"] if file else []))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", VALUES, ids=name_of)
def test_every_object_is_valid_for_three_versions_of_kubernetes(file: Path | None) -> None:
    ways = [objects(file), objects(file, kuberay=True)]
    pods = []
    for rendered in ways:
        clusters = of_kind(rendered, "RayCluster")
        assert bool(clusters) != bool(of_kind(rendered, "StatefulSet")), "one or the other"
        templates = [template for _, template in pod_templates(clusters)]
        pods += [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]
    for number, pod in enumerate(pods):
        pod["metadata"] = {**pod["metadata"], "name": f"pod-{number}"}
    for rendered in ways:
        names = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in rendered]
        assert len(set(names)) == len(names), "two objects of one name"
    for found in [*ways[0], *ways[1], *pods]:
        check(json.dumps(found, sort_keys=True))


@pytest.mark.parametrize("file", VALUES, ids=name_of)
def test_the_configmap_is_what_argosy_reads(file: Path | None) -> None:
    rendered = objects(file)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    given = {**defaults, **(yaml.safe_load(file.read_text()) if file else {})}
    config = parse_config(yaml.safe_load(named(rendered, "ConfigMap", "r-argosy")["data"]["argosy.yaml"]))
    assert config.region == given["config"].get("region", "local")
    assert [model.name for model in config.models] == [model["name"] for model in given["config"]["models"]]
    assert config.router.listen == "0.0.0.0:50051"
    assert str(config.model_store) == "/models"
    assert [region.name for region in config.regions] == [region["name"] for region in given.get("regions", [])]
    assert config.serves_anonymous == (given["config"].get("identity", {}).get("mode") == "anonymous")


def test_an_object_that_kubernetes_does_not_know_is_noticed() -> None:
    """The checks above can fail."""
    service = named(objects(None), "Service", "r-argosy-router")
    for change in ({"spec": {**service["spec"], "prots": []}}, {"spec": {**service["spec"], "ports": "grpc"}}):
        with pytest.raises(ValidationError):
            check(json.dumps({**service, **change}))


def test_the_package_holds_the_chart_and_no_values_of_ours(tmp_path: Path) -> None:
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("argosy-*.tgz")
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert {"argosy/Chart.yaml", "argosy/values.schema.json", "argosy/templates/_ray.tpl"} <= set(names)
    assert not [name for name in names if "/ci/" in name]


def test_notes_name_the_next_commands() -> None:
    done = helm("install", "r", CHART, "--dry-run=client", "--namespace", "serving")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl -n serving rollout status deployment/r-argosy-router" in notes
    assert "argosy keys create acme -f /etc/argosy/config/argosy.yaml" in notes
    assert "kubectl -n serving port-forward service/r-argosy-router 50051:50051" in notes
    assert "WARNING" not in notes


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ({"router__replicas": "many"}, "at '/router/replicas': got string, want integer"),
        ({"router__replicsa": 2}, "at '/router': additional properties 'replicsa' not allowed"),
        ({"config__models": []}, "at '/config/models'"),
        ({"config__models": [{"name": "m", "tensor_paralel": 2}]}, "at '/config/models/0': additional properties"),
        ({"config__models": [{"name": "m", "tensor_parallel": 0}]}, "at '/config/models/0/tensor_parallel'"),
        ({"config__router__listen": "0.0.0.0:1"}, "at '/config/router': additional properties 'listen' not allowed"),
        ({"pools": []}, "at '/pools'"),
        ({"pools": [{"name": "a", "gpus": -1}]}, "at '/pools/0/gpus'"),
        ({"pools": [{"name": "Big_Pool"}]}, "at '/pools/0/name'"),
        ({"ray__operator": "maybe"}, "at '/ray/operator'"),
        ({"ray__terminationGracePeriodSeconds": 5}, "at '/ray/terminationGracePeriodSeconds'"),
        ({"tls__enabled": True}, "at '/tls/certManager"),
        ({"ledger__store": "postgres"}, "at '/ledger/postgres/url'"),
        ({"peers__mode": "secrets"}, "at '/peers/secretPrefix'"),
        ({"models__cache__kind": "hostPath"}, "at '/models/cache/hostPath'"),
        ({"networkPolicy__regionRanges": ["everywhere"]}, "at '/networkPolicy/regionRanges/0'"),
        ({"regions": [{"name": "eu", "controllers": []}]}, "at '/regions/0/controllers'"),
        ({"images__engine__digest": "latest"}, "at '/images/engine/digest'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(sets: dict[str, object], says: str) -> None:
    assert says in refused(**sets)


def test_every_value_is_in_the_schema() -> None:
    """So that none of the chart's own can be misspelt by a user."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        if node.get("additionalProperties") is not False:
            return
        assert set(values) <= set(node["properties"]), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, node["properties"][key], f"{path}.{key}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


def test_the_schema_is_the_configurations() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.chart_schema", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
