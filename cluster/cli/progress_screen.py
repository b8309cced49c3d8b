"""Progress of starts on a screen: a live table on a terminal, a line per change elsewhere. Asks nobody."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from argosy.internal.v1 import control_pb2
from cluster.cli.tables import progress_view
from cluster.cli.terminal import human_bytes


class ProgressScreen:
    """Shows each message of `WatchProgress` in place of the one before."""

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

    def show(self, told: control_pb2.WatchProgressResponse) -> None:
        """The newest message."""
        if self._live is not None:
            self._live.update(progress_view(told.replicas), refresh=True)
            return
        for replica in (entry.status for entry in told.replicas):
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
