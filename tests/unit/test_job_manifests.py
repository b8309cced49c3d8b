"""What `argosy submit` hands to Ray and to KubeRay: the command, the files, the environment, the objects."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cluster.cli.job_spec import BatchFiles, entrypoint, job_spec, read_runtime_env, write_working_directory
from cluster.cli.kuberay import Pods, render
from cluster.cli.submit import command
from cluster.config import parse_config
from cluster.errors import ConfigurationError
from tests.support.kubernetes_schemas import validator

MODEL = {"name": "m", "device": "cuda", "tensor_parallel": 4, "pipeline_parallel": 2, "replicas": 3}
RAY_JOB_FIELDS = {  # of RayJobSpec, ray.io/v1
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip


def config(**fields: Any) -> Any:
    return parse_config({"models": [MODEL], **fields})


def problems(item: dict[str, Any], version: str) -> list[str]:
    return [error.message for error in validator(item["kind"], item["apiVersion"], version).iter_errors(item)]


def test_the_job_gets_what_was_written_and_finds_its_own_paths(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    batch = BatchFiles(source, Path("/shared/out file.jsonl"), "m", 7)
    directory = tmp_path / "job"
    directory.mkdir()
    write_working_directory(directory, config(region="west"), batch, None)
    raw = json.loads((directory / "argosy.json").read_text())
    assert raw["models"] == [MODEL]
    assert set(raw) == {"region", "models", "ray"}
    assert raw["ray"]["address"] == "auto"
    assert (directory / "batch.jsonl").read_text() == "{}\n"
    words = shlex.split(entrypoint(batch))
    assert words[0] == "exec"
    assert words[words.index("--out") + 1] == "/shared/out file.jsonl"
    assert words[words.index("--batch") + 1] == "batch.jsonl"


def test_a_batch_has_its_own_namespace_and_the_same_one_again(tmp_path: Path) -> None:
    def namespace(out: str | None) -> str:
        batch = BatchFiles(Path("/none"), Path(out), None, None) if out else None
        write_working_directory(tmp_path, config(), batch, None)
        return str(json.loads((tmp_path / "argosy.json").read_text())["ray"]["namespace"])

    assert namespace("/a") == namespace("/a")
    assert len({namespace(None), namespace("/a"), namespace("/b")}) == 3
    assert namespace(None) == "argosy"


def test_a_stop_leaves_time_to_drain(tmp_path: Path) -> None:
    spec = job_spec(config(router={"drain_seconds": 45.5}), None, tmp_path, {"env_vars": {"A": "b"}, "pip": ["x"]})
    variables = spec.runtime_env["env_vars"]
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > 45.5
    assert variables["A"] == "b"
    assert spec.runtime_env["pip"] == ["x"]


def test_a_runtime_environment_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    for text, words in (("[1]", "expected a mapping"), ("working_dir: .", "use --working-dir"), ("a: [", "env.yaml")):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=words):
            read_runtime_env(file)


def rendered(batch: BatchFiles | None = None, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    pods = Pods("argosy-engine:1", {"models": "/models", "files": "/data"})
    config_map, job = yaml.safe_load_all(render(config(**fields), batch, pods, "night"))
    return config_map, job


def test_the_cluster_of_a_ray_job_has_room_for_every_stage() -> None:
    config_map, job = rendered(model_store="/models")
    spec = job["spec"]
    assert set(spec) <= RAY_JOB_FIELDS
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 6
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert group["rayStartParams"]["num-cpus"] == "5"
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "/etc/argosy/argosy.json" in spec["entrypoint"]
    loaded = parse_config(json.loads(config_map["data"]["argosy.json"]))
    assert (loaded.ray.address, str(loaded.model_store)) == ("auto", "/models")


@pytest.mark.parametrize("version", ["1.32", "1.34", "1.36"])
def test_the_pods_and_the_config_map_are_what_kubernetes_takes(version: str) -> None:
    config_map, job = rendered()
    cluster = job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    pods = [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]
    for pod in pods:
        pod["metadata"]["name"] = "pod"
        mounted = {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
        assert not pod["spec"]["automountServiceAccountToken"]
    for item in [config_map, *pods]:
        assert problems(item, version) == []
    pods[0]["spec"]["containers"][0]["imagePullPolicyy"] = "Always"
    assert problems(pods[0], version)


def test_a_batch_reads_and_writes_on_a_mounted_volume_only() -> None:
    _, job = rendered(BatchFiles(Path("/data/in.jsonl"), Path("/data/out.jsonl"), None, None))
    assert "--batch /data/in.jsonl --out /data/out.jsonl" in job["spec"]["entrypoint"]
    assert job["spec"]["backoffLimit"] > 0
    with pytest.raises(ConfigurationError, match="--out: /tmp/out.jsonl lies on no volume"):
        rendered(BatchFiles(Path("/data/in.jsonl"), Path("/tmp/out.jsonl"), None, None))
    with pytest.raises(ConfigurationError, match="device is auto"):
        rendered(models=[{"name": "m"}])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say where with --address"),
        (["--batch", "in"], "need each other"),
        (["--status", "a", "--stop", "b"], "exclude each other"),
        (["--render"], "which region?"),
        (["x.yaml", "--render", "--claim", "models"], "not NAME=/DIRECTORY"),
    ],
)
def test_what_makes_no_sense_together_is_refused(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
