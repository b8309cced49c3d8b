"""A region or a batch as KubeRay's `RayJob`, and the ConfigMap that it reads. Pure: a configuration in, objects out.

The cluster that the job brings along fits the configuration: a pod for each stage, with the ranks of it inside. Field
names are those of ray.io/v1 (github.com/ray-project/kuberay, ray-operator/apis/ray/v1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster.cli.job_spec import CONFIG_FILE, STOP_MARGIN_SECONDS, BatchFiles, entrypoint, in_cluster
from cluster.config import ArgosyConfig, ModelSection
from cluster.errors import ConfigurationError

RAY_VERSION = "2.60.0"
CONFIG_DIRECTORY = "/etc/argosy"
HOME = "/home/argosy"
USER_ID = 10001
"""Of the images."""
_BYTES_FREE = 2 * 2**30
"""For Python and Ray beside weights and caches."""


@dataclass(frozen=True, slots=True)
class Pods:
    """What pods are made of, beside the configuration."""

    image: str
    claims: Mapping[str, str] = field(default_factory=dict)
    """Where each PersistentVolumeClaim is mounted, by its name: models, a batch's files."""


def render(config: ArgosyConfig, batch: BatchFiles | None, pods: Pods, name: str) -> str:
    """The objects as YAML documents.

    Raises:
        ConfigurationError: a device was left open, or a batch's files lie on no claim.
    """
    for model in config.models:
        if model.device == "auto":
            raise ConfigurationError(f"models: {model.name}: device is auto; a manifest must say cpu or cuda")
    if batch is not None:
        for flag, path in (("--batch", batch.input), ("--out", batch.output)):
            if not any(path.is_relative_to(mount) for mount in pods.claims.values()):
                raise ConfigurationError(f"{flag}: {path} lies on no volume; mount one with --claim NAME=/DIRECTORY")
    return yaml.safe_dump_all([_config_map(config, batch, name), _ray_job(config, batch, pods, name)], sort_keys=False)


def _config_map(config: ArgosyConfig, batch: BatchFiles | None, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name),
        "data": {CONFIG_FILE: json.dumps(in_cluster(config, batch), indent=2)},
    }


def _ray_job(config: ArgosyConfig, batch: BatchFiles | None, pods: Pods, name: str) -> dict[str, Any]:
    stop_seconds = math.ceil(config.router.drain_seconds + STOP_MARGIN_SECONDS)
    groups = [_workers(model, index, pods, name) for index, model in enumerate(config.models) if model.replicas]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name),
        "spec": {
            "entrypoint": entrypoint(batch, config_file=f"{CONFIG_DIRECTORY}/{CONFIG_FILE}", ships_input=False),
            "submissionMode": "HTTPMode",
            # A batch goes on where it was; a region that fails is looked at first.
            "backoffLimit": 3 if batch else 0,
            "shutdownAfterJobFinishes": True,
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds)}}),
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    # The head places nothing: a region survives its workers, not its head.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
                    "template": _pod(pods, name, "head", cpus=2, gpus=0, memory=2 * _BYTES_FREE),
                },
                "workerGroupSpecs": groups,
            },
        },
    }


def _workers(model: ModelSection, index: int, pods: Pods, name: str) -> dict[str, Any]:
    """Pods of one model: each has the devices of a stage, and a CPU for an engine."""
    count = model.replicas * model.pipeline_parallel
    tp = model.tensor_parallel
    threads = model.threads_per_rank or 1
    gpus = tp if model.device == "cuda" else 0
    memory = _BYTES_FREE * (tp + 1) + int(model.engine.kv_cache) * tp
    return {
        "groupName": f"model-{index}",
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": count,
        "rayStartParams": {"num-cpus": str(tp + 1)},
        "template": _pod(pods, name, "worker", cpus=tp * threads + 1, gpus=gpus, memory=memory),
    }


def _pod(pods: Pods, name: str, role: str, *, cpus: int, gpus: int, memory: int) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": str(cpus), "memory": f"{memory // 2**20}Mi"}
    if gpus:
        resources["nvidia.com/gpu"] = str(gpus)
    mounts = {"config": CONFIG_DIRECTORY, "shm": "/dev/shm", "home": HOME, "tmp": "/tmp"}  # noqa: S108
    claims = {f"claim-{number}": claim for number, claim in enumerate(pods.claims)}
    mounts |= {volume: pods.claims[claim] for volume, claim in claims.items()}
    return {
        "metadata": {"labels": {"app.kubernetes.io/name": "argosy", "app.kubernetes.io/instance": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 60,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": f"ray-{role}",
                    "image": pods.image,
                    "env": [{"name": "HOME", "value": HOME}],
                    "resources": {"requests": resources, "limits": resources},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in mounts.items()],
                }
            ],
            "volumes": [
                {"name": "config", "configMap": {"name": name}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
                {"name": "home", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                *({"name": volume, "persistentVolumeClaim": {"claimName": claim}} for volume, claim in claims.items()),
            ],
        },
    }


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "labels": {"app.kubernetes.io/name": "argosy", "app.kubernetes.io/instance": name}}
