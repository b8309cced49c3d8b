"""Sums and gathers over torch.distributed backends, gloo and NCCL. Knows one backend, not who its ranks are.

The only file of `parallel` that touches NCCL; that half follows its documentation and has not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, Protocol, cast

import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroupGloo, Store, Work

from model.parallel.context import check_sizes
from model.parallel.progress import CollectiveError, ProgressCounter, peer_failures_named


class Backend(Protocol):
    """What is used of torch's backends, whose own type stubs leave these out."""

    def allreduce(self, tensors: list[Tensor]) -> Work: ...

    def allgather(self, output_tensors: list[list[Tensor]], input_tensors: list[Tensor]) -> Work: ...

    def alltoall_base(
        self, output: Tensor, input: Tensor, output_split_sizes: list[int], input_split_sizes: list[int]
    ) -> Work: ...

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> Work: ...

    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> Work: ...


def open_backend(
    kind: Literal["gloo", "nccl"], store: Store, rank: int, size: int, *, host: str | None, timeout_seconds: float
) -> Backend:
    """Meet the other ranks at `store`, which must be theirs alone (a `PrefixStore`).

    Args:
        host: address of this machine at which gloo listens; default: that of its host name.

    Raises:
        CollectiveError: a rank did not come in time, or this torch has no NCCL.
    """
    timeout = timedelta(seconds=timeout_seconds)
    options: Any
    with peer_failures_named(f"{kind} rendezvous", f"{size} ranks"):
        if kind == "gloo":
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # the stubs lack it
            options._timeout = timeout
            device = ProcessGroupGloo.create_device(hostname=host) if host else ProcessGroupGloo.create_default_device()
            options._devices = [device]
            return cast(Backend, ProcessGroupGloo(store, rank, size, options))
        if not torch.distributed.is_nccl_available():
            raise CollectiveError("this torch has no NCCL; install a CUDA build or use gloo")
        from torch._C._distributed_c10d import ProcessGroupNCCL  # CPU builds lack it

        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        return cast(Backend, ProcessGroupNCCL(store, rank, size, options))


def shares_device(store: Store, rank: int, size: int, device: torch.device) -> bool:
    """Whether any two ranks hold the same GPU, which NCCL refuses; every rank gets the same answer."""
    store.set(f"device/{rank}", str(torch.cuda.get_device_properties(device).uuid))
    return len({store.get(f"device/{peer}") for peer in range(size)}) < size


class ProcessGroupTensorGroup:
    """The tensor ranks of one stage over a backend; gloo takes CPU and CUDA tensors, NCCL CUDA tensors."""

    def __init__(self, backend: Backend, rank: int, size: int, progress: ProgressCounter) -> None:
        self.rank = rank
        self.size = size
        self._backend = backend
        self._progress = progress
        self._sequence = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """See `TensorGroup.all_reduce`. gloo and NCCL reduce each element once and share the result: equal bits."""
        x = x.contiguous()
        with self._running("all_reduce"):
            self._backend.allreduce([x]).wait()
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """See `TensorGroup.all_gather`. Backends want equal parts, so narrower ones travel padded.

        Raises:
            ValueError: `sizes` does not fit this rank's `x` or the number of ranks.
        """
        check_sizes(x, sizes, self.rank, self.size)
        width = max(sizes)
        padded = x.new_zeros(*x.shape[:-1], width)
        padded[..., : x.shape[-1]] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        with self._running("all_gather"):
            self._backend.allgather([parts], [padded]).wait()
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)

    def all_to_all(self, rows_NH: Tensor, counts: Sequence[Sequence[int]]) -> Tensor:
        """See `TensorGroup.all_to_all`."""
        received = [row[self.rank] for row in counts]
        output = rows_NH.new_empty(sum(received), rows_NH.shape[1])
        with self._running("all_to_all"):
            self._backend.alltoall_base(output, rows_NH.contiguous(), received, list(counts[self.rank])).wait()
        return output

    def leave(self) -> None:
        """Nothing to say: the sockets close with the process, and destroying a group with a dead peer can hang."""

    @contextmanager
    def _running(self, operation: str) -> Iterator[None]:
        self._sequence += 1
        what = f"{operation} {self._sequence}"
        self._progress.bump(what)
        with peer_failures_named(what, f"the other {self.size - 1} ranks"):
            yield
        self._progress.bump("compute")
