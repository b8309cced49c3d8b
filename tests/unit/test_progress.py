"""How far a start is, and how long it may take, from what ranks said and when."""

from __future__ import annotations

from argosy.internal.v1 import control_pb2
from cluster.cli.tables import progress_line
from cluster.control.progress import ProgressBook
from cluster.control.reconcile import Phase, Record
from cluster.ids import Epoch, ReplicaId

LOADING, READY = control_pb2.REPLICA_STATE_LOADING, control_pb2.REPLICA_STATE_READY


def record(epoch: int = 1) -> Record:
    return Record(ReplicaId("m/0"), Phase.STARTING, Epoch(epoch), since=100.0)


def status(*ranks: tuple[str, int], state: int = LOADING, epoch: int = 1, **took: float) -> control_pb2.ReplicaStatus:
    """Ranks of 1,000 bytes each: (phase, bytes read)."""
    return control_pb2.ReplicaStatus(
        replica_id="m/0",
        model="m",
        epoch=epoch,
        state=state,
        ranks=[
            control_pb2.RankStatus(stage=index, phase=phase, loaded_bytes=loaded, total_bytes=1000, phase_seconds=took)
            for index, (phase, loaded) in enumerate(ranks)
        ],
    )


def test_the_pace_of_the_slowest_rank_gives_the_estimate() -> None:
    book = ProgressBook()
    book.progress(status(("loading", 0), ("loading", 0)), record(), 100.0)
    told = book.progress(status(("loading", 500), ("loading", 250)), record(), 110.0)
    assert (told.loaded_bytes, told.total_bytes, told.ranks_ready, told.phase) == (750, 2000, 0, "loading")
    assert told.elapsed_seconds == 10.0
    assert told.remaining_seconds == 30.0  # 250 bytes in 10 s, 750 to go


def test_without_anything_to_go_by_there_is_no_estimate() -> None:
    told = ProgressBook().progress(status(("importing", 0), ("ready", 1000)), record(), 101.0)
    assert not told.HasField("remaining_seconds")
    assert (told.ranks_ready, told.phase) == (1, "importing")


def test_an_earlier_start_tells_how_long_phases_without_bytes_take() -> None:
    book = ProgressBook()
    book.progress(
        status(("ready", 1000), state=READY, starting=1.0, importing=4.0, loading=10.0, warming=2.0), record(), 100.0
    )
    book.progress(status(("importing", 0), epoch=2), record(2), 200.0)
    told = book.progress(status(("importing", 0), epoch=2), record(2), 203.0)
    assert told.remaining_seconds == 1.0 + 10.0 + 2.0
    book.progress(status(("loading", 0), epoch=2), record(2), 204.0)
    told = book.progress(status(("loading", 500), epoch=2), record(2), 209.0)
    assert told.remaining_seconds == 5.0 + 2.0


def test_a_replica_that_is_ready_has_nothing_left() -> None:
    told = ProgressBook().progress(status(("ready", 1000), state=READY), record(), 150.0)
    assert not told.HasField("remaining_seconds")
    assert (told.elapsed_seconds, told.ranks_ready) == (0.0, 1)


def test_the_line_reads_well() -> None:
    told = control_pb2.ReplicaProgress(
        status=status(("loading", 500), ("ready", 1000)),
        ranks_ready=1,
        loaded_bytes=1500,
        total_bytes=2000,
        elapsed_seconds=3.2,
        remaining_seconds=1.9,
        phase="loading",
    )
    line = progress_line(told)
    assert line.startswith("loading: ")
    assert line.endswith(" read, 1 of 2 ranks ready after 3 s, about 2 s left")
