"""`argosy logs`: the log lines of all processes of a region on this machine, in order of time; or those of one request.

Knows the files that `cluster.logs` writes. Which lines belong to a request is a pure function.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from cluster.config import load_config
from cluster.errors import ConfigurationError
from cluster.logs import SUFFIX, log_directory

POLL_SECONDS = 0.3
LEVELS = ("debug", "info", "warning", "error", "critical")
_HEAD = ("time", "level", "logger", "message")

Line = dict[str, Any]


@click.command("logs")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="The YAML file that `argosy up` was given.")
@click.option("--region", help="Which region. Default: the file's, else local.")
@click.option("--request", "request_id", help="Follow one request over all processes: its id, as `Started` tells it.")
@click.option("--level", type=click.Choice(LEVELS), default="info", show_default=True, help="Leave out what is less.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, for programs.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
def command(
    file: Path | None, region: str | None, request_id: str | None, level: str, as_json: bool, follow: bool
) -> None:
    """Show the logs of all processes, or follow one request through them.

    They are those of one region on this machine. With --request: every line about the request, and what went
    wrong meanwhile with the replicas that it was at.

    \b
    Examples:
      argosy logs
      argosy logs --request req_0123456789abcdef0123456789abcdef
      argosy logs --level warning --follow
    """
    name = region or (load_config(file).region if file else "local")
    directory = log_directory(name)
    if not directory.is_dir():
        raise ConfigurationError(
            f"no logs of region {name!r} in {directory}; `argosy up` writes them unless log.files is false"
        )
    files = _Files(directory)
    known = files.new_lines()
    chosen = of_request(known, request_id) if request_id else known
    if request_id and not chosen and not follow:
        raise click.ClickException(f"no line about {request_id} in {directory}")
    _show(chosen, level, as_json)
    while follow:
        time.sleep(POLL_SECONDS)
        shown, known = {id(line) for line in chosen}, [*known, *files.new_lines()]
        chosen = of_request(known, request_id) if request_id else known
        _show([line for line in chosen if id(line) not in shown], level, as_json)


def of_request(lines: Sequence[Line], request_id: str) -> list[Line]:
    """Lines about a request; and warnings and errors of the replicas and epochs that had it, while they had it."""
    own = [line for line in lines if line.get("request") == request_id]
    times: dict[tuple[Any, Any], list[str]] = {}
    for line in own:
        if "replica" in line and "epoch" in line:
            times.setdefault((line["replica"], line["epoch"]), []).append(line["time"])
    last = max((line["time"] for line in own), default="")

    def concerns(line: Line) -> bool:
        stayed = times.get((line.get("replica"), line.get("epoch")))
        is_bad = LEVELS.index(line["level"]) >= LEVELS.index("warning")
        return bool(stayed) and is_bad and "request" not in line and min(stayed or ()) <= line["time"] <= last

    return [line for line in lines if line.get("request") == request_id or concerns(line)]


def _show(lines: Iterable[Line], level: str, as_json: bool) -> None:
    least = LEVELS.index(level)
    for line in lines:
        if LEVELS.index(line["level"]) < least:
            continue
        click.echo(json.dumps(line) if as_json else _text(line))


def _text(line: Line) -> str:
    fields = "".join(f"{key}={value} " for key, value in line.items() if key not in (*_HEAD, "exception"))
    trace = f"\n{line['exception']}" if "exception" in line else ""
    return f"{line['time']} {line['level'].upper()} {fields}{line['logger']}: {line['message']}{trace}"


class _Files:
    """The files of a directory, each read as far as it has been written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}

    def new_lines(self) -> list[Line]:
        """What has come since the last call, by time."""
        # Files put aside come first: their lines are older, and they do not grow.
        paths = sorted(self._directory.glob(f"*{SUFFIX}*"), key=lambda path: path.suffix == SUFFIX)
        return sorted((line for path in paths for line in self._read(path)), key=lambda line: str(line["time"]))

    def _read(self, path: Path) -> Iterator[Line]:
        offset = self._offsets.get(path, 0)
        try:
            with path.open("rb") as file:
                file.seek(offset if offset <= path.stat().st_size else 0)
                data = file.read()
        except OSError:
            return  # put aside or deleted meanwhile
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[path] = offset + len(whole)
        for raw in whole.splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue  # the disk was full, or somebody else writes here
            if isinstance(line, dict) and {"time", "level", "logger", "message"} <= line.keys():
                yield line
