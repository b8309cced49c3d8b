"""One long answer of a real router, read beside a test."""

from __future__ import annotations

import threading

import grpc

from argosy.v1 import inference_pb2, inference_pb2_grpc
from tests.support.region import wait_until


class Stream:
    """One long answer, read beside the test."""

    def __init__(self, router: str, model: str, max_tokens: int) -> None:
        self.tokens = 0
        self.error: Exception | None = None
        self._channel = grpc.insecure_channel(router)
        request = inference_pb2.GenerateRequest(model=model, prompt="Once upon a time", max_tokens=max_tokens)
        request.sampling.temperature = 0.0
        request.stop.ignore_end_of_text = True
        stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._call = stub.Generate(request, timeout=200)
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._call.cancel()
        self._thread.join(10)
        self._channel.close()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.tokens += len(event.delta.token_ids)
        except grpc.RpcError as error:
            self.error = error

    def wait_for(self, tokens: int) -> None:
        wait_until(lambda: self.tokens >= tokens or self.error, 120, f"{tokens} tokens")
        assert self.error is None, self.error

    def wait_for_end(self) -> None:
        self._thread.join(60)
