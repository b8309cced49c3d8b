"""What a controller may say of a region: one replica of two stages and two tensor ranks."""

from __future__ import annotations

from argosy.internal.v1 import control_pb2 as control
from argosy.internal.v1 import replica_pb2, step_pb2


def status(*, epoch: int = 1, scale: int = 1, pid: int = 7, slow: bool = False) -> control.GetStatusResponse:
    """Counters that grow with `scale`."""
    decode = step_pb2.PhaseFigures(
        steps=10 * scale, busy_seconds=0.5 * scale, flops=4e9 * scale, memory_bytes=3e9 * scale
    )
    prefill = step_pb2.PhaseFigures(steps=scale, busy_seconds=0.5 * scale, flops=6e9 * scale, memory_bytes=1e9 * scale)
    figures = step_pb2.RankFigures(
        prefill=prefill, decode=decode, collective_seconds=0.25 * scale, peak_flops=2e10, peak_bytes=1e10
    )
    ranks = [
        control.RankStatus(
            stage=stage, tensor_rank=rank, node="n1", device="cpu", phase="ready", pid=pid, step=11 * scale,
            figures=figures, slow=slow, loaded_bytes=10, total_bytes=10,
        )
        for stage in range(2)
        for rank in range(2)
    ]  # fmt: skip
    load = replica_pb2.Load(
        running=3, waiting=1, used_blocks=50, total_blocks=100, missed_tokens=100 * scale, hit_tokens=300 * scale
    )
    replica = control.ReplicaStatus(
        replica_id="m/0", model="m", epoch=epoch, state=control.REPLICA_STATE_READY, ranks=ranks, load=load,
        delivered_tokens=40 * scale,
    )  # fmt: skip
    return control.GetStatusResponse(region="east", replicas=[replica], router_ids=["r1"])
