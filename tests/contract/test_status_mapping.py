"""The one table from causes to statuses: every reason crosses a real channel and comes back as it was."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from cluster import rpc
from cluster.errors import ERROR_DOMAIN, Code, FieldViolation, QuotaViolation, Reason, ServiceError
from cluster.rpc.status import FOREIGN_REASONS, STATUS_CODES, to_status


def error_of(reason: Reason) -> ServiceError:
    """An error of that reason with everything that may come with it."""
    return ServiceError(
        reason,
        detail="some detail",
        violations=(FieldViolation("a.b[0]", "is wrong"),) if reason is Reason.INVALID_FIELD else (),
        quotas=(QuotaViolation("router", "at most 3"),) if reason is Reason.OVERLOADED else (),
        retry_after=2.5 if reason.retryable else None,
        metadata={"key": "value"},
    )


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_survives_the_wire_format(reason: Reason) -> None:
    error = error_of(reason)
    status = status_pb2.Status.FromString(to_status(error).SerializeToString())
    assert rpc.service_error_from_status(status) == error
    assert status.code == STATUS_CODES[reason.code].value[0]
    assert status.message == error.public_message


@pytest.mark.parametrize("reason", Reason)
def test_details_are_there_exactly_when_they_apply(reason: Reason) -> None:
    kinds = {packed.type_url.rpartition(".")[2] for packed in to_status(error_of(reason)).details}
    assert ("RetryInfo" in kinds) == reason.retryable
    assert ("BadRequest" in kinds) == (reason is Reason.INVALID_FIELD)
    assert ("QuotaFailure" in kinds) == (reason is Reason.OVERLOADED)
    assert "ErrorInfo" in kinds


def test_a_retryable_error_always_says_when() -> None:
    retry = error_details_pb2.RetryInfo()
    assert any(packed.Unpack(retry) for packed in to_status(ServiceError(Reason.NO_REPLICA)).details)
    assert retry.retry_delay.ToNanoseconds() > 0


def test_every_code_is_a_grpc_code() -> None:
    for code in Code:
        assert STATUS_CODES[code].value[0] == code.value


def test_another_domains_error_is_not_taken_for_ours() -> None:
    status = to_status(ServiceError(Reason.NO_REPLICA))
    info = error_details_pb2.ErrorInfo(reason="NO_REPLICA", domain="example.com")
    status.details[0].Pack(info)
    with pytest.raises(KeyError):
        rpc.service_error_from_status(status)
    assert ERROR_DOMAIN != "example.com"


class Thrower(grpc.GenericRpcHandler):
    """Raises what the method's name says."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        self._errors = errors

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def throw(request: bytes, context: Any) -> bytes:
            raise self._errors[handler_call_details.method.rpartition("/")[2]]

        return grpc.unary_unary_rpc_method_handler(throw)


class _Sized(bytes):
    def ByteSize(self) -> int:  # noqa: N802
        return len(self)


async def call_all(errors: dict[str, BaseException]) -> dict[str, grpc.aio.AioRpcError]:
    """What a client sees for each error that a handler raises."""
    server = rpc.server(default_deadline=5.0)
    server.add_generic_rpc_handlers((Thrower(errors),))
    address = rpc.listen(server, "127.0.0.1:0", "test")
    await server.start()
    seen = {}
    async with rpc.channel(address) as channel:
        for name in errors:
            method = channel.unary_unary(f"/test/{name}", request_serializer=bytes, response_deserializer=_Sized)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"", timeout=5)
            seen[name] = caught.value
    await server.stop(None)
    return seen


def test_every_reason_crosses_a_real_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.rpc.guard.CallGuard._check_request", lambda self, request: None)
    errors: dict[str, BaseException] = {reason.name: error_of(reason) for reason in Reason}
    seen = asyncio.run(call_all(errors))
    for reason in Reason:
        assert seen[reason.name].code() is STATUS_CODES[reason.code]
        assert seen[reason.name].details() == error_of(reason).public_message
        assert rpc.to_service_error(seen[reason.name]) == error_of(reason)


def test_an_unknown_exception_leaks_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("cluster.rpc.guard.CallGuard._check_request", lambda self, request: None)
    seen = asyncio.run(call_all({"boom": ZeroDivisionError("/secret/path at 10.0.0.7")}))["boom"]
    assert seen.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in repr(seen.details()) + repr(seen.trailing_metadata())
    assert "/secret/path" in caplog.text, "the operator must see it"


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_a_status_without_details_still_means_something(code: grpc.StatusCode) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "whatever the transport says")
    reason = rpc.to_service_error(error).reason
    expected = {STATUS_CODES[known]: foreign for known, foreign in FOREIGN_REASONS.items()}
    assert reason is expected.get(code, Reason.INTERNAL)
