"""The wait until a region is ready, shown. Decides when there is no point in going on."""

from __future__ import annotations

from rich.console import Console

from argosy.internal.v1 import control_pb2
from cluster.cli.progress_screen import ProgressScreen
from cluster.cli.region import Region, StoppedError
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
    with ProgressScreen(console) as progress:
        while True:
            told = region.progress()
            status = _status_of(told) if told is not None else None
            if told is not None and status is not None and status.replicas:
                progress.show(told)
                _give_up_if_hopeless(status, attempts, region)
            elif status is not None and not any(model.replicas for model in region.config.models):
                return status
            if region.router_serves() and status is not None and _all_ready(status):
                return status
            if region.stop_request.wait(POLL_SECONDS):
                raise StoppedError


def _status_of(told: control_pb2.WatchProgressResponse) -> control_pb2.GetStatusResponse:
    return control_pb2.GetStatusResponse(region=told.region, replicas=[entry.status for entry in told.replicas])


def _all_ready(status: control_pb2.GetStatusResponse) -> bool:
    return bool(status.replicas) and all(r.state == control_pb2.REPLICA_STATE_READY for r in status.replicas)


def _give_up_if_hopeless(status: control_pb2.GetStatusResponse, attempts: int, region: Region) -> None:
    failed = [r for r in status.replicas if r.state == control_pb2.REPLICA_STATE_FAILED and r.epoch >= attempts]
    if len(failed) == len(status.replicas):
        first = failed[0]
        raise ConfigurationError(
            f"replica {first.replica_id} does not start: {first.reason}; logs are in {region.directory}"
        )
