"""The wait until a region is ready, shown: a live table on a terminal, a line per change elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from argosy.internal.v1 import control_pb2
from cluster.cli.region import Region, StoppedError
from cluster.cli.tables import status_view
from cluster.cli.terminal import human_bytes
from cluster.errors import ConfigurationError

POLL_SECONDS = 0.1


def wait_until_ready(region: Region, console: Console, *, attempts: int) -> control_pb2.GetStatusResponse:
    """Show every rank's progress until all replicas take requests and the router does too.

    Args:
        attempts: after so many failed starts of every replica, with none ready, there is no point in going on.

    Raises:
        ConfigurationError: there is no point in going on; names the reason.
        StoppedError: a signal came.
    """
    with _RankProgress(console) as progress:
        while True:
            status = region.status()
            if status is not None and status.replicas:
                progress.show(status)
                _give_up_if_hopeless(status, attempts, region)
            elif status is not None and not any(model.replicas for model in region.config.models):
                return status
            if region.router_serves() and status is not None and _all_ready(status):
                return status
            if region.stop_request.wait(POLL_SECONDS):
                raise StoppedError


def _all_ready(status: control_pb2.GetStatusResponse) -> bool:
    return bool(status.replicas) and all(r.state == control_pb2.REPLICA_STATE_READY for r in status.replicas)


def _give_up_if_hopeless(status: control_pb2.GetStatusResponse, attempts: int, region: Region) -> None:
    failed = [r for r in status.replicas if r.state == control_pb2.REPLICA_STATE_FAILED and r.epoch >= attempts]
    if len(failed) == len(status.replicas):
        first = failed[0]
        raise ConfigurationError(
            f"replica {first.replica_id} does not start: {first.reason}; logs are in {region.directory}"
        )


class _RankProgress:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[str, str] = {}
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: control_pb2.GetStatusResponse) -> None:
        if self._live is not None:
            self._live.update(status_view(status.replicas), refresh=True)
            return
        for replica in status.replicas:
            if replica.state in (control_pb2.REPLICA_STATE_FAILED, control_pb2.REPLICA_STATE_PENDING):
                self._say(replica.replica_id, replica.reason or "waits to be placed")
                continue
            for rank in replica.ranks:
                size = f", {human_bytes(rank.total_bytes)}" if rank.phase == "loading" and rank.total_bytes else ""
                name = f"{replica.replica_id} stage {rank.stage} rank {rank.tensor_rank}"
                self._say(name, f"{rank.phase}{size}")

    def _say(self, name: str, news: str) -> None:
        if self._seen.get(name) != news:
            self._seen[name] = news
            self._console.print(f"{name}: {news}", markup=False)
