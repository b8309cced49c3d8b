"""The controller's two gRPC services over a published view. Knows what was last published, not how it came about."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from argosy.internal.v1 import control_pb2, control_pb2_grpc
from cluster.control.plan import WantedReplica
from cluster.control.reconcile import Drain
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.telemetry.exporter import reachable

Context = grpc.aio.ServicerContext[Any, Any]

RESEND_SECONDS = 1.0
"""A watcher hears the directory at least so often: silence means a lost controller, not a quiet one."""


DEFAULT_GRACE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class DrainTarget:
    """Who is to leave."""

    kind: str
    """A field of `DrainRequest.target`."""
    name: str


class DrainFunction(Protocol):
    """Carries an order out."""

    async def __call__(self, target: DrainTarget, drain: Drain, *, undo: bool) -> None: ...


ApplyFunction = Callable[[control_pb2.ApplyRequest], AsyncIterator[control_pb2.ApplyResponse]]
"""Carries a wanted state out."""


class RegionView:
    """The region as last published. One writer; any number of watchers, each of which always gets the newest."""

    def __init__(self, region: str) -> None:
        self.directory = control_pb2.WatchReplicasResponse(region=region, version=1)
        self._models: list[control_pb2.WantedModel] = []
        self._started_at = Timestamp()
        self._started_at.GetCurrentTime()
        self.status = control_pb2.GetStatusResponse(region=region, started_at=self._started_at)
        self.progress = control_pb2.WatchProgressResponse(region=region)
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()
        self._watches: Counter[str] = Counter()
        self._sent_away: set[str] = set()
        self.router_metrics: dict[str, str] = {}
        """Where each router that watches can be scraped."""

    @property
    def router_ids(self) -> list[str]:
        """Routers that watch the directory."""
        return sorted(self._watches)

    @contextmanager
    def watched_by(self, router_id: str, metrics: str = "") -> Iterator[None]:
        """Count a router in for as long as it watches; `metrics`: where it can be scraped."""
        self._watches[router_id] += 1
        if metrics:
            self.router_metrics[router_id] = metrics
        try:
            yield
        finally:
            self._watches[router_id] -= 1
            if not self._watches[router_id]:
                del self._watches[router_id]
                self._sent_away.discard(router_id)
                self.router_metrics.pop(router_id, None)

    def send_away(self, router_id: str) -> None:
        """Tell a router to finish and end."""
        self._sent_away.add(router_id)
        self._changed.set()
        self._changed = asyncio.Event()

    def is_sent_away(self, router_id: str) -> bool:
        return router_id in self._sent_away

    def announce(self, wanted: Iterable[WantedReplica]) -> None:
        """Tell watchers which models there are to be: one replica of each is given."""
        self._models = [
            control_pb2.WantedModel(
                name=one.section.name, section=one.section.model_copy(update={"path": one.directory}).model_dump_json()
            )
            for one in wanted
        ]
        self._tell(list(self.directory.replicas), self.directory.version + 1)

    def publish(
        self,
        replicas: list[control_pb2.ReplicaStatus],
        directory: list[control_pb2.DirectoryEntry],
        progress: Sequence[control_pb2.ReplicaProgress] = (),
    ) -> None:
        """Replace all of them; wake the watchers of what differs."""
        region = self.status.region
        self.status = control_pb2.GetStatusResponse(region=region, replicas=replicas, started_at=self._started_at)
        if list(progress) != list(self.progress.replicas):
            self.progress = control_pb2.WatchProgressResponse(region=region, replicas=progress)
            self._moved.set()
            self._moved = asyncio.Event()
        if directory == list(self.directory.replicas):
            return
        grown = _members(directory) != _members(self.directory.replicas)
        self._tell(directory, self.directory.version + int(grown))

    def _tell(self, replicas: list[control_pb2.DirectoryEntry], version: int) -> None:
        self.directory = control_pb2.WatchReplicasResponse(
            region=self.status.region, version=version, replicas=replicas, models=self._models
        )
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch_progress(self) -> AsyncIterator[control_pb2.WatchProgressResponse]:
        """The progress now, and again whenever it changes; a slow reader skips what is overtaken."""
        while True:
            moved = self._moved
            yield self.progress
            await moved.wait()

    async def watch(self) -> AsyncIterator[control_pb2.WatchReplicasResponse]:
        """The directory now, and again whenever it changes; a slow reader skips what is overtaken."""
        while True:
            changed = self._changed
            yield self.directory
            try:
                async with asyncio.timeout(RESEND_SECONDS):
                    await changed.wait()
            except TimeoutError:
                continue


def _members(entries: Any) -> list[tuple[str, str, str, int]]:
    return [(entry.replica_id, entry.model, entry.address, entry.epoch) for entry in entries]


class Directory(control_pb2_grpc.DirectoryServiceServicer):
    """For routers."""

    def __init__(self, view: RegionView) -> None:
        self._view = view

    async def WatchReplicas(  # noqa: N802
        self, request: control_pb2.WatchReplicasRequest, context: Context
    ) -> AsyncIterator[control_pb2.WatchReplicasResponse]:
        told: dict[tuple[str, int], int] = {}
        # A router that listens on every address does not know which of them others see; this end of its call does.
        metrics = reachable(request.metrics_address or None, _host_of(context.peer()))
        with self._view.watched_by(request.router_id, metrics):
            async for directory in self._view.watch():
                copy = without_prefixes(directory, told if request.wants_prefixes else None)
                copy.drain = self._view.is_sent_away(request.router_id)
                yield copy


def _host_of(peer: str) -> str:
    """The address of `ipv4:10.0.0.1:5000` and `ipv6:%5B::1%5D:5000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0]


def without_prefixes(
    directory: control_pb2.WatchReplicasResponse, told: dict[tuple[str, int], int] | None
) -> control_pb2.WatchReplicasResponse:
    """The directory as one watcher gets it: each summary of a prefix cache once.

    Args:
        told: the summary that the watcher has, its version by replica and epoch; kept up to date. None: it wants none.
    """
    copy = control_pb2.WatchReplicasResponse()
    copy.CopyFrom(directory)
    for entry in copy.replicas:
        key, version = (entry.replica_id, entry.epoch), entry.prefixes.version
        if told is None or told.get(key) == version:
            entry.ClearField("prefixes")
        else:
            told[key] = version
    return copy


class Control(control_pb2_grpc.ControlServiceServicer):
    """For operators."""

    def __init__(
        self,
        view: RegionView,
        shut_down: Callable[[], Awaitable[None]],
        drain: DrainFunction | None = None,
        apply: ApplyFunction | None = None,
    ) -> None:
        self._apply = apply
        self._view = view
        self._shut_down = shut_down
        self._drain = drain

    async def GetStatus(  # noqa: N802
        self, request: control_pb2.GetStatusRequest, context: Context
    ) -> control_pb2.GetStatusResponse:
        status = control_pb2.GetStatusResponse()
        status.CopyFrom(self._view.status)
        status.router_ids.extend(self._view.router_ids)
        return status

    async def WatchProgress(  # noqa: N802
        self, request: control_pb2.WatchProgressRequest, context: Context
    ) -> AsyncIterator[control_pb2.WatchProgressResponse]:
        async for progress in self._view.watch_progress():
            yield progress

    async def Drain(  # noqa: N802
        self, request: control_pb2.DrainRequest, context: Context
    ) -> control_pb2.DrainResponse:
        kind = request.WhichOneof("target")
        if kind is None:
            violation = FieldViolation("target", "is missing; set replica_id, node or router_id")
            raise ServiceError(Reason.INVALID_FIELD, violations=(violation,))
        assert self._drain is not None
        grace = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else DEFAULT_GRACE_SECONDS
        order = Drain(grace, restart=request.restart)
        await self._drain(DrainTarget(kind, getattr(request, kind)), order, undo=request.undo)
        return control_pb2.DrainResponse()

    async def Apply(  # noqa: N802
        self, request: control_pb2.ApplyRequest, context: Context
    ) -> AsyncIterator[control_pb2.ApplyResponse]:
        assert self._apply is not None
        async for event in self._apply(request):
            yield event

    async def Shutdown(  # noqa: N802
        self, request: control_pb2.ShutdownRequest, context: Context
    ) -> control_pb2.ShutdownResponse:
        await self._shut_down()
        return control_pb2.ShutdownResponse()
