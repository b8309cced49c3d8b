"""A worker's end of the step channel: says who it is, then reads and writes messages. Knows no slots and no tensors."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable

from argosy.internal.v1 import step_pb2
from cluster.framing import FrameReader, Pipe, encode_frame, prepare_socket
from cluster.launch import WorkerSpec
from cluster.peers import Role
from cluster.tls_socket import TlsSocket

CONNECT_SECONDS = 10.0


class EngineChannel:
    """One connection to the engine. Any thread may send; one thread of its own reads."""

    def __init__(self, connection: Pipe, on_lost: Callable[[str], None]) -> None:
        """`on_lost(reason)` is called once, on the reading thread, when the engine is gone or says stop."""
        self._connection = connection
        self._on_lost = on_lost
        self._send_lock = threading.Lock()
        self._steps: queue.SimpleQueue[step_pb2.StepInput] = queue.SimpleQueue()
        self._rendezvous: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.stopped = False
        """The engine asked for the end, as opposed to having vanished."""

    @classmethod
    def connect(cls, spec: WorkerSpec, on_lost: Callable[[str], None]) -> EngineChannel:
        """Connect, say hello and start reading.

        Raises:
            OSError: the engine cannot be reached, or does not prove that it is one.
        """
        channel = cls(_connect(spec), on_lost)
        channel._send(
            step_pb2.WorkerMessage(
                hello=step_pb2.WorkerHello(
                    secret=spec.replica.secret,
                    epoch=spec.replica.epoch,
                    stage=spec.coordinates.stage,
                    tensor_rank=spec.coordinates.tp_rank,
                    pid=os.getpid(),
                    node=spec.host,
                )
            )
        )
        threading.Thread(target=channel._read, args=(spec.replica.epoch,), name="engine-channel", daemon=True).start()
        return channel

    def report(self, report: step_pb2.WorkerReport) -> None:
        """Send a report.

        Raises:
            OSError: the connection broke.
        """
        self._send(step_pb2.WorkerMessage(report=report))

    def try_report(self, report: step_pb2.WorkerReport) -> None:
        """Send a last report if the engine is still there."""
        with contextlib.suppress(OSError):
            self.report(report)

    def answer(self, output: step_pb2.StepOutput) -> None:
        """Send a step's result.

        Raises:
            OSError: the connection broke.
        """
        self._send(step_pb2.WorkerMessage(output=output))

    def next_step(self) -> step_pb2.StepInput:
        """Wait for the next step of this epoch."""
        return self._steps.get()

    def wait_rendezvous(self, timeout_seconds: float) -> str:
        """Wait for the address of the ranks' store.

        Raises:
            TimeoutError: world rank 0 did not open one in time.
        """
        try:
            return self._rendezvous.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError(f"no rendezvous address within {timeout_seconds:.0f} s") from None

    def _send(self, message: step_pb2.WorkerMessage) -> None:
        frame = encode_frame(message.SerializeToString())
        with self._send_lock:
            self._connection.sendall(frame)

    def _read(self, epoch: int) -> None:
        try:
            reason = self._read_until_end(epoch)
        except Exception as error:  # whatever ends this thread ends the worker, or it would sit idle for ever
            reason = f"{type(error).__name__}: {error}"
        self._on_lost(reason)

    def _read_until_end(self, epoch: int) -> str:
        reader = FrameReader(self._connection)
        while (payload := reader.read()) is not None:
            message = step_pb2.EngineMessage.FromString(payload)
            match message.WhichOneof("message"):
                case "step" if message.step.epoch == epoch:
                    self._steps.put(message.step)
                case "rendezvous":
                    self._rendezvous.put(message.rendezvous.address)
                case "stop":
                    self.stopped = True
                    return "the engine said stop"
                case _:
                    pass  # of another epoch, or from a newer engine
        return "the engine closed the connection"


def _connect(spec: WorkerSpec) -> Pipe:
    host, _, port = spec.step_channel.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS)
    prepare_socket(connection)
    context = spec.replica.peers.identity(Role.WORKER).client_context()
    pipe = TlsSocket(connection, context, Role.ENGINE.dns_name) if context else connection
    connection.settimeout(None)
    return pipe
