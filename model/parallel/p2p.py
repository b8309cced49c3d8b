"""Hand-overs between the stages of a pipeline, for one tensor rank. Knows rings and process groups, no models.

Hidden states go to the next stage, sampled tokens from the last stage to the first. A sender never needs its receiver
to be waiting already: with several steps in flight the first stage sends the next step while the last one feeds back
the previous, and each would wait for the other. Shape legend: T packed tokens, H hidden size.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from model.parallel.process_group import Backend
from model.parallel.progress import CollectiveError, ProgressCounter, peer_failures_named
from model.parallel.segment import Segment
from model.parallel.shared_memory import ByteRing

Int32Array = npt.NDArray[np.int32]

HIDDEN_RING_BYTES = 4 << 20
"""Room between two stages; a longer message passes in pieces while the receiver takes it."""
FEED_BACK_RING_BYTES = 1 << 18
_HIDDEN_TAG, _FEED_BACK_TAG = 1, 2


class SharedMemoryLinks:
    """Stages on one host: a ring to each next stage, and one from the last to the first."""

    def __init__(
        self, namespace: str, stage: int, num_stages: int, *, timeout_seconds: float, progress: ProgressCounter
    ) -> None:
        """Open the segment `namespace` together with the other stages; errors as for `Segment`."""
        sizes = [HIDDEN_RING_BYTES] * (num_stages - 1) + [FEED_BACK_RING_BYTES]
        segment = Segment(
            namespace,
            stage,
            num_stages,
            num_counters=2 * num_stages,
            data_bytes=sum(sizes),
            timeout_seconds=timeout_seconds,
        )

        def ring(source: int) -> ByteRing:
            """The ring that stage `source` writes."""
            target = (source + 1) % num_stages
            written, taken = segment.counters[2 * source : 2 * source + 2]
            start = sum(sizes[:source])
            memory = segment.data[start : start + sizes[source]]
            return ByteRing(written, taken, memory, f"stage {source} to {target}", timeout_seconds)

        self._incoming = ring((stage - 1) % num_stages)
        self._outgoing = ring(stage)
        self._stage, self._num_stages = stage, num_stages
        self._progress = progress

    def send(self, hidden_TH: Tensor) -> None:
        self._require(self._stage < self._num_stages - 1, "send")
        self._progress.bump("send")
        self._outgoing.put(hidden_TH.contiguous().view(-1).view(torch.uint8).numpy())
        self._progress.bump("compute")

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        self._require(self._stage > 0, "receive")
        self._progress.bump("receive")
        hidden_TH = torch.empty(num_tokens, hidden_size, dtype=dtype)
        self._incoming.take(hidden_TH.view(-1).view(torch.uint8).numpy())
        self._progress.bump("compute")
        return hidden_TH

    def feed_back(self, token_ids: Int32Array) -> None:
        self._require(self._stage == self._num_stages - 1, "feed_back")
        self._outgoing.put(np.ascontiguousarray(token_ids, np.int32).view(np.uint8))

    def take_feed_back(self, count: int) -> Int32Array:
        self._require(self._stage == 0, "take_feed_back")
        self._progress.bump("take_feed_back")
        token_ids = np.empty(count, np.int32)
        self._incoming.take(token_ids.view(np.uint8))
        self._progress.bump("compute")
        return token_ids

    def leave(self) -> None:
        self._outgoing.leave_as_writer()
        self._incoming.leave_as_reader()

    def _require(self, allowed: bool, operation: str) -> None:
        if not allowed:
            raise CollectiveError(f"stage {self._stage} of {self._num_stages} cannot {operation}")


class ProcessGroupLinks:
    """Stages over torch.distributed. Hidden states go by `hidden_group` (NCCL or gloo), token ids always by gloo.

    Two groups, because NCCL runs a pair's transfers in one order: a send ahead of a receive could wait for ever.
    """

    def __init__(
        self,
        hidden_group: Backend,
        token_group: Backend,
        stage: int,
        num_stages: int,
        *,
        device: torch.device,
        wire_device: torch.device,
        timeout_seconds: float,
        progress: ProgressCounter,
    ) -> None:
        """`wire_device` is where `hidden_group` wants its tensors."""
        self._hidden_group, self._token_group = hidden_group, token_group
        self._stage, self._num_stages = stage, num_stages
        self._device, self._wire_device = device, wire_device
        self._timeout = timedelta(seconds=timeout_seconds)
        self._progress = progress
        # Copies under way: at most as many as steps can be in flight, with some to spare.
        self._max_pending = 2 * num_stages + 4
        self._pending: deque[tuple[Work, Tensor]] = deque()
        self._pending_tokens: deque[tuple[Work, Tensor]] = deque()

    def send(self, hidden_TH: Tensor) -> None:
        copy = hidden_TH.detach().to(self._wire_device, copy=True, memory_format=torch.contiguous_format)
        self._start("send", self._hidden_group, copy, self._stage + 1, _HIDDEN_TAG, self._pending)

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        hidden_TH = torch.empty(num_tokens, hidden_size, dtype=dtype, device=self._wire_device)
        self._finish("receive", self._hidden_group, hidden_TH, self._stage - 1, _HIDDEN_TAG)
        return hidden_TH.to(self._device)

    def feed_back(self, token_ids: Int32Array) -> None:
        copy = torch.from_numpy(token_ids.astype(np.int32, copy=True))
        self._start("feed_back", self._token_group, copy, 0, _FEED_BACK_TAG, self._pending_tokens)

    def take_feed_back(self, count: int) -> Int32Array:
        token_ids = torch.empty(count, dtype=torch.int32)
        self._finish("take_feed_back", self._token_group, token_ids, self._num_stages - 1, _FEED_BACK_TAG)
        taken: Int32Array = token_ids.numpy()
        return taken

    def leave(self) -> None:
        """Nothing to say: the sockets close with the process, and destroying a group with a dead peer can hang."""

    def _start(
        self,
        operation: str,
        group: Backend,
        tensor: Tensor,
        peer: int,
        tag: int,
        pending: deque[tuple[Work, Tensor]],
    ) -> None:
        self._progress.bump(operation)
        with peer_failures_named(operation, f"stage {peer}"):
            pending.append((group.send([tensor], peer, tag), tensor))
            if len(pending) > self._max_pending:
                pending.popleft()[0].wait(self._timeout)
        self._progress.bump("compute")

    def _finish(self, operation: str, group: Backend, tensor: Tensor, peer: int, tag: int) -> None:
        self._progress.bump(operation)
        with peer_failures_named(operation, f"stage {peer}"):
            group.recv([tensor], peer, tag).wait(self._timeout)
        self._progress.bump("compute")
