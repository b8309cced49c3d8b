"""`argosy submit`: a region or a batch as a Ray job, or a batch on this machine. Decides which; others do it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import click

from cluster.cli.demo import DEFAULT_FILE
from cluster.cli.job_spec import BatchFiles, job_spec, read_runtime_env, write_working_directory
from cluster.cli.kuberay import Pods
from cluster.cli.kuberay import render as manifests
from cluster.cli.ray_jobs import Jobs
from cluster.config import ArgosyConfig, load_config

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
DEFAULT_IMAGE = f"argosy-engine:{version('argosy')}"
STOP_POLL_SECONDS = 0.5

_PATH = click.Path(path_type=Path)


@click.command("submit")
@click.argument("file", type=_PATH, required=False)
@click.option("--address", help="The head's Jobs API, such as http://HEAD:8265.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show what the job writes until it ends.")
@click.option("--batch", type=_PATH, help="Answer the prompts of this JSONL file instead of serving.")
@click.option("--out", type=_PATH, help="Where the answers go. What it holds already is not asked again.")
@click.option("--model", help="For lines of a batch that name none. Default: the only one of FILE.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), help="Prompts of a batch in flight. Default: what the replicas hold."
)
@click.option("--working-dir", type=_PATH, help="A directory to send along; relative paths in FILE start there.")
@click.option("--runtime-env", type=_PATH, help="YAML file with more of Ray's runtime environment (pip, env_vars, …).")
@click.option(
    "--render", is_flag=True, help="Print the job as Kubernetes objects for KubeRay (RayJob); submit nothing."
)
@click.option("--name", default="argosy", show_default=True, help="Of the rendered objects.")
@click.option("--image", default=DEFAULT_IMAGE, show_default=True, help="Of the rendered pods.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=/DIR", help="PersistentVolumeClaim to mount in them.")
@click.option("--status", "status_of", metavar="ID", help="Say how a job does, and end.")
@click.option("--logs", "logs_of", metavar="ID", help="Follow a job that was submitted before.")
@click.option("--stop", "stop_id", metavar="ID", help="End a job: its answers finish, then its region ends.")
def command(
    file: Path | None,
    address: str | None,
    follow: bool,
    batch: Path | None,
    out: Path | None,
    model: str | None,
    concurrency: int | None,
    working_dir: Path | None,
    runtime_env: Path | None,
    render: bool,
    name: str,
    image: str,
    claims: tuple[str, ...],
    status_of: str | None,
    logs_of: str | None,
    stop_id: str | None,
) -> None:
    """Run a region, or a batch of prompts, as a Ray job; or a batch on this machine.

    With --address, FILE is handed to the Ray cluster there, whose nodes must have Argosy and the models. The job starts
    the region, stays, and ends all of it when it is stopped. Ctrl-C leaves the job running.

    With --batch, the prompts of a JSONL file are answered: {"id": …, "prompt": …} or {"id": …, "messages": […]}, with
    max_tokens, temperature, seed, stop and so on; or lines of OpenAI's batch API. A batch that was cut short goes on
    where it was when the same command is given again. Without --address it runs here.

    \b
    Examples:
      argosy submit serve.yaml --address http://HEAD:8265
      argosy submit --status raysubmit_x --address http://HEAD:8265      also --logs, --stop
      argosy submit --batch in.jsonl --out out.jsonl
      argosy submit serve.yaml --batch in.jsonl --out /shared/out.jsonl --address http://HEAD:8265
      argosy submit serve.yaml --render --claim models=/models | kubectl apply -f -
    """
    asked = [(name, value) for name, value in (("status", status_of), ("logs", logs_of), ("stop", stop_id)) if value]
    if asked and (len(asked) > 1 or file or batch):
        raise click.UsageError("--status, --logs and --stop exclude each other, and take no FILE and no --batch")
    if (batch is None) != (out is None):
        raise click.UsageError("--batch and --out need each other")
    files = BatchFiles(batch, _absolute(out), model, concurrency) if batch and out else None
    if asked:
        what, job_id = asked[0]
        _about(Jobs(address or DEFAULT_ADDRESS), what, job_id)
    elif render:
        pods = Pods(image, dict(map(_claim, claims)))
        click.echo(manifests(load_config(_needed(file)), files, pods, name), nl=False)
    elif address is not None:
        _submit(Jobs(address), load_config(_needed(file)), files, working_dir, runtime_env, follow)
    elif batch is not None and out is not None:
        _run_here(load_config(file or DEFAULT_FILE), batch, out, model, concurrency)
    else:
        raise click.UsageError("say where with --address http://HEAD:8265; here, `argosy up -f FILE` serves")


def _submit(
    jobs: Jobs,
    config: ArgosyConfig,
    files: BatchFiles | None,
    extra: Path | None,
    runtime_env: Path | None,
    follow: bool,
) -> None:
    if jobs.is_open:
        click.echo(
            f"Warning: {jobs.address} runs jobs of whoever reaches it; start Ray with RAY_AUTH_MODE=token", err=True
        )
    with tempfile.TemporaryDirectory(prefix="argosy-job-") as name:
        directory = Path(name)
        write_working_directory(directory, config, files, extra)
        job_id = jobs.submit(job_spec(config, files, directory, read_runtime_env(runtime_env)))
    click.echo(f"Submitted {job_id} to {jobs.address}")
    if follow:
        _follow(jobs, job_id)
    else:
        click.echo(_ways_back(jobs, job_id))


def _about(jobs: Jobs, what: str, job_id: str) -> None:
    state = jobs.state(job_id)
    if what == "status":
        region = f", region {state.metadata['argosy_region']}" if "argosy_region" in state.metadata else ""
        click.echo(f"{job_id} is {state.status}{region}")
        if state.status == "FAILED":
            click.echo(state.message)
    elif what == "logs":
        _follow(jobs, job_id)
    else:
        jobs.stop(job_id)
        while not (state := jobs.state(job_id)).has_ended:
            time.sleep(STOP_POLL_SECONDS)
        click.echo(f"{job_id} is {state.status}")


def _follow(jobs: Jobs, job_id: str) -> None:
    """Show its output until it ends; Ctrl-C stops showing, not the job. A failed job's exit status is 1."""
    try:
        asyncio.run(_show(jobs, job_id))
    except KeyboardInterrupt:
        click.echo(f"\nDetached; the job goes on.\n{_ways_back(jobs, job_id)}", err=True)
        click.get_current_context().exit(130)
    state = jobs.state(job_id)
    click.echo(f"{job_id} is {state.status}")
    if state.status == "FAILED":
        click.get_current_context().exit(1)


async def _show(jobs: Jobs, job_id: str) -> None:
    async for piece in jobs.follow(job_id):
        sys.stdout.write(piece)
        sys.stdout.flush()


def _ways_back(jobs: Jobs, job_id: str) -> str:
    return (
        f"  watch  argosy submit --logs {job_id} --address {jobs.address}\n"
        f"  ask    argosy submit --status {job_id} --address {jobs.address}\n"
        f"  stop   argosy submit --stop {job_id} --address {jobs.address}"
    )


def _run_here(config: ArgosyConfig, batch: Path, out: Path, model: str | None, concurrency: int | None) -> None:
    from cluster.cli.batch_run import run_batch
    from cluster.cli.region import StoppedError

    try:
        tally = run_batch(config, batch, out, model, concurrency)
    except StoppedError:
        click.echo(f"Stopped; {out} keeps what is done, and the same command goes on from there", err=True)
        click.get_current_context().exit(130)
    refused = f", of which {tally.refused} refused" if tally.refused else ""
    click.echo(f"{out} holds {tally.resumed + tally.done} of {tally.total} lines{refused}")


def _needed(file: Path | None) -> Path:
    if file is None:
        raise click.UsageError("which region? give its YAML file: argosy submit FILE --address …")
    return file


def _claim(text: str) -> tuple[str, str]:
    name, _, directory = text.partition("=")
    if not name or not directory.startswith("/"):
        raise click.UsageError(f"--claim: {text!r} is not NAME=/DIRECTORY")
    return name, directory


def _absolute(path: Path) -> Path:
    """As the job will see it: its own directory is not ours."""
    return path if path.is_absolute() else Path.cwd() / path
