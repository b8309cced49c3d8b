"""The controller's two gRPC services over a published view. Knows what was last published, not how it came about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc.aio

from argosy.internal.v1 import control_pb2, control_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

RESEND_SECONDS = 1.0
"""A watcher hears the directory at least so often: silence means a lost controller, not a quiet one."""


class RegionView:
    """The region as last published. One writer; any number of watchers, each of which always gets the newest."""

    def __init__(self, region: str) -> None:
        self.directory = control_pb2.WatchReplicasResponse(region=region, version=1)
        self.status = control_pb2.GetStatusResponse(region=region)
        self.progress = control_pb2.WatchProgressResponse(region=region)
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()

    def publish(
        self,
        replicas: list[control_pb2.ReplicaStatus],
        directory: list[control_pb2.DirectoryEntry],
        progress: Sequence[control_pb2.ReplicaProgress] = (),
    ) -> None:
        """Replace all of them; wake the watchers of what differs."""
        region = self.status.region
        self.status = control_pb2.GetStatusResponse(region=region, replicas=replicas)
        if list(progress) != list(self.progress.replicas):
            self.progress = control_pb2.WatchProgressResponse(region=region, replicas=progress)
            self._moved.set()
            self._moved = asyncio.Event()
        if directory == list(self.directory.replicas):
            return
        grown = _members(directory) != _members(self.directory.replicas)
        version = self.directory.version + int(grown)
        self.directory = control_pb2.WatchReplicasResponse(region=region, version=version, replicas=directory)
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
        async for directory in self._view.watch():
            yield without_prefixes(directory, told if request.wants_prefixes else None)


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

    def __init__(self, view: RegionView, shut_down: Callable[[], Awaitable[None]]) -> None:
        self._view = view
        self._shut_down = shut_down

    async def GetStatus(  # noqa: N802
        self, request: control_pb2.GetStatusRequest, context: Context
    ) -> control_pb2.GetStatusResponse:
        return self._view.status

    async def WatchProgress(  # noqa: N802
        self, request: control_pb2.WatchProgressRequest, context: Context
    ) -> AsyncIterator[control_pb2.WatchProgressResponse]:
        async for progress in self._view.watch_progress():
            yield progress

    async def Shutdown(  # noqa: N802
        self, request: control_pb2.ShutdownRequest, context: Context
    ) -> control_pb2.ShutdownResponse:
        await self._shut_down()
        return control_pb2.ShutdownResponse()
