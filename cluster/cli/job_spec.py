"""A region or a batch as one Ray job: the command, the files that it brings, its environment. Asks no Ray."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.cli.ray_jobs import JobSpec
from cluster.config import ArgosyConfig
from cluster.errors import ConfigurationError

CONFIG_FILE = "argosy.json"
BATCH_FILE = "batch.jsonl"
MAX_UPLOAD_BYTES = 100 * 2**20
"""A larger input belongs on storage that the cluster reaches."""
STOP_MARGIN_SECONDS = 30.0
"""For replicas to end after the router has drained; then Ray kills whatever is left."""


@dataclass(frozen=True, slots=True)
class BatchFiles:
    """What a batch job reads and writes."""

    input: Path
    """On this machine, or, if it is not there, on the node that runs the job."""
    output: Path
    """On the node that runs the job."""
    model: str | None
    concurrency: int | None


def in_cluster(config: ArgosyConfig, batch: BatchFiles | None) -> dict[str, Any]:
    """The configuration as the job will read it: what the user wrote, on the cluster that the job is part of.

    Defaults are left out: paths among them are those of the machine that runs the job.
    """
    raw: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    namespace = config.ray.namespace
    if batch is not None:
        # Its own, so that it can run beside a region that serves; the same again for the same output.
        namespace += "-batch-" + hashlib.sha256(str(batch.output).encode()).hexdigest()[:12]
    raw["ray"] = {**raw.get("ray", {}), "address": "auto", "namespace": namespace}
    return raw


def entrypoint(batch: BatchFiles | None, *, config_file: str = CONFIG_FILE, ships_input: bool = True) -> str:
    """The job's shell command. `exec`: Ray's signals are for us, not for a shell around us.

    Args:
        ships_input: a batch's input is sent along if this machine has it.
    """
    command = ["python", "-m", "cluster.cli"]
    if batch is None:
        return "exec " + shlex.join([*command, "up", "-f", config_file])
    source = BATCH_FILE if ships_input and batch.input.exists() else str(batch.input)
    command += ["submit", config_file, "--batch", source, "--out", str(batch.output)]
    if batch.model is not None:
        command += ["--model", batch.model]
    if batch.concurrency is not None:
        command += ["--concurrency", str(batch.concurrency)]
    return "exec " + shlex.join(command)


def write_working_directory(
    directory: Path, config: ArgosyConfig, batch: BatchFiles | None, extra: Path | None
) -> None:
    """Fill what is sent along: the configuration, a batch's input, and the files of `extra`.

    Raises:
        ConfigurationError: the input is too large to send, or `extra` is no directory.
    """
    if extra is not None:
        if not extra.is_dir():
            raise ConfigurationError(f"--working-dir: {extra} is not a directory")
        shutil.copytree(extra, directory, dirs_exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(in_cluster(config, batch), indent=2))
    if batch is not None and batch.input.exists():
        size = batch.input.stat().st_size
        if size > MAX_UPLOAD_BYTES:
            raise ConfigurationError(
                f"--batch: {batch.input} has {size // 2**20} MiB, and at most {MAX_UPLOAD_BYTES // 2**20} are sent "
                "along; put it on storage that the cluster reaches, and name its path there"
            )
        shutil.copyfile(batch.input, directory / BATCH_FILE)


def job_spec(
    config: ArgosyConfig, batch: BatchFiles | None, working_directory: Path, extra_env: Mapping[str, Any]
) -> JobSpec:
    """What Ray is asked to run.

    Args:
        extra_env: more of Ray's runtime environment, such as `pip` or `env_vars`.
    """
    stop_seconds = math.ceil(config.router.drain_seconds + STOP_MARGIN_SECONDS)
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds), **extra_env.get("env_vars", {})}
    return JobSpec(
        entrypoint=entrypoint(batch),
        runtime_env={**extra_env, "working_dir": str(working_directory), "env_vars": variables},
        metadata={
            "argosy_region": config.region,
            "argosy_kind": "batch" if batch else "serve",
            "argosy_router": config.router.listen,
        },
    )


def read_runtime_env(path: Path | None) -> dict[str, Any]:
    """Ray's runtime environment from a YAML file; empty without one.

    Raises:
        ConfigurationError: it cannot be read, or sets what is ours to set.
    """
    if path is None:
        return {}
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--runtime-env: {path}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("env_vars", {}), dict):
        raise ConfigurationError(f"--runtime-env: {path}: expected a mapping such as `env_vars: {{NAME: value}}`")
    if "working_dir" in raw:
        raise ConfigurationError(f"--runtime-env: {path}: working_dir is made by this command; use --working-dir")
    return raw
