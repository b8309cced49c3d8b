"""One request over as many calls as it takes: what to ask next, whom, and when. Knows events and failures; no network,
no clock.

A call that fails before `started` is made again, one that fails later is resumed, at the next router. An exchange gives
up when nothing moved for `RetryPolicy.max_failures` calls, when the failure says that asking again is no use, or when
the next call could not begin before the deadline.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from argosy.v1 import inference_pb2 as api

_DETAILS = "grpc-status-details-bin"
_TRANSPORT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
"""What a connection that breaks looks like, depending on where it does."""


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a client is. Waits double, and are drawn evenly from zero up to the present length ("full jitter"),
    so that clients which failed together do not return together; a server's RetryInfo is their least."""

    max_failures: int = 8
    """Calls in a row without news, after which the last failure is raised."""
    first_wait_seconds: float = 0.1
    longest_wait_seconds: float = 5.0


@dataclass(frozen=True)
class Failure:
    """How a call ended that did not end well."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    """`ErrorInfo.reason` of a router, such as `QUOTA_EXCEEDED`; empty if no router spoke."""
    retry_seconds: float | None = None
    """When the router says that asking again may help; None if it does not say so."""

    @property
    def is_transport(self) -> bool:
        """No router said it: the connection broke, or there was none."""
        return not self.reason and self.code in _TRANSPORT

    @classmethod
    def of(cls, error: Any) -> Failure:
        """Of the error of either kind of channel: an `AioRpcError`, or an `RpcError` that is a call too."""
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        status = status_pb2.Status()
        for key, value in error.trailing_metadata() or ():
            if key == _DETAILS:
                status.ParseFromString(bytes(value))
        said = [packed for packed in status.details if packed.Unpack(info) or packed.Unpack(retry)]
        seconds = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") and said else None
        return cls(error.code(), error.details() or "", info.reason, seconds)


class RequestError(Exception):
    """A request that could not be completed. The gRPC error of its last call is its `__context__`."""

    def __init__(self, failure: Failure, request_id: str = "") -> None:
        super().__init__(f"{failure.reason or failure.code.name}: {failure.message}")
        self.failure = failure
        self.request_id = request_id
        """The server's id of the request; empty if it was never accepted."""


class Exchange:
    """A request's state on the client's side."""

    def __init__(
        self,
        request: api.GenerateRequest,
        num_routers: int,
        deadline: float,
        policy: RetryPolicy,
        rng: random.Random,
        first_router: int = 0,
    ) -> None:
        """`deadline` in the seconds of whatever clock `failed` is told."""
        self.router = first_router
        """Index of the router to call."""
        self._request = request
        self._num_routers = num_routers
        self._deadline = deadline
        self._policy = policy
        self._rng = rng
        self._request_id = ""
        self._token = b""
        self._sequence = 0
        self._checkpoint = b""
        self._received: dict[int, list[int]] = {}
        self._failures = 0

    @property
    def has_begun(self) -> bool:
        """A router has accepted the request: from here on it is resumed, never asked again."""
        return bool(self._token)

    def next_request(self) -> api.GenerateRequest:
        """What to send now: the request, or its rest."""
        if not self.has_begun:
            return self._request
        request = api.GenerateRequest()
        request.CopyFrom(self._request)
        request.resume.token = self._token
        request.resume.last_sequence = self._sequence
        request.resume.checkpoint = self._checkpoint
        for choice, token_ids in self._received.items():
            request.resume.received.add(choice=choice, token_ids=token_ids)
        return request

    def take(self, event: api.GenerateResponse) -> bool:
        """Note an event; False if the caller has seen one like it before a resumption.

        Raises:
            RequestError: deltas are missing.
        """
        if event.HasField("started"):
            is_first = not self.has_begun
            self._token, self._request_id = event.started.resume_token, event.started.request_id
            return is_first
        if event.HasField("delta"):
            delta = event.delta
            if delta.sequence != self._sequence + 1:
                text = f"delta {delta.sequence} came after delta {self._sequence}"
                raise RequestError(Failure(grpc.StatusCode.DATA_LOSS, text), self._request_id)
            self._sequence, self._checkpoint = delta.sequence, delta.checkpoint
            self._received.setdefault(delta.choice, []).extend(delta.token_ids)
            self._failures = 0
        return True

    def failed(self, failure: Failure, now: float) -> float:
        """Decide what to do after a call that failed; the seconds to wait before the next one.

        Raises:
            RequestError: there is no use in another one.
        """
        self._failures += 1
        elsewhere = failure.is_transport or failure.code is grpc.StatusCode.UNAVAILABLE
        wait = self._wait(failure, elsewhere)
        again = failure.is_transport or failure.retry_seconds is not None
        if not again or self._failures >= self._policy.max_failures or now + wait >= self._deadline:
            raise RequestError(failure, self._request_id)
        if elsewhere:
            self.router = (self.router + 1) % self._num_routers
        return wait

    def _wait(self, failure: Failure, elsewhere: bool) -> float:
        if elsewhere and self._failures < self._num_routers:
            # There is a router that was not asked yet.
            return self._rng.uniform(0, self._policy.first_wait_seconds)
        doubled = self._policy.first_wait_seconds * 2.0 ** min(self._failures - 1, 30)
        jitter = self._rng.uniform(0, min(self._policy.longest_wait_seconds, doubled))
        return max(failure.retry_seconds or 0.0, jitter)
