"""Turns a `ServiceError` into a gRPC status with google.rpc details, and back; knows no services."""

from __future__ import annotations

from typing import Any, Never

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from cluster.errors import ERROR_DOMAIN, Code, FieldViolation, QuotaViolation, Reason, ServiceError

DETAILS_KEY = "grpc-status-details-bin"
DETAIL_METADATA = "detail"
"""Key of `ErrorInfo.metadata` that holds `ServiceError.detail`."""
DEFAULT_RETRY_SECONDS = 1.0

STATUS_CODES = {code: grpc.StatusCode[code.name] for code in Code}

FOREIGN_REASONS = {
    Code.CANCELLED: Reason.CLIENT_CANCELLED,
    Code.DEADLINE_EXCEEDED: Reason.DEADLINE,
    Code.UNAVAILABLE: Reason.UNREACHABLE,
    Code.RESOURCE_EXHAUSTED: Reason.REQUEST_TOO_LARGE,
    Code.UNIMPLEMENTED: Reason.UNSUPPORTED,
}
"""What a status without our details means: the transport made it, not a server of ours."""


def to_status(error: ServiceError) -> status_pb2.Status:
    """The whole status: code, public text, ErrorInfo always, and whichever of the other details apply."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.name, domain=ERROR_DOMAIN, metadata=error.metadata)
    if error.detail:
        info.metadata[DETAIL_METADATA] = error.detail
    details: list[Any] = [info]
    if error.reason.retryable:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round((error.retry_after or DEFAULT_RETRY_SECONDS) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.description)
            for violation in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.quotas:
        quotas = [
            error_details_pb2.QuotaFailure.Violation(subject=quota.subject, description=quota.description)
            for quota in error.quotas
        ]
        details.append(error_details_pb2.QuotaFailure(violations=quotas))
    status = status_pb2.Status(code=error.reason.code.value, message=error.public_message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: ServiceError) -> Never:
    """End the call that `context` belongs to with the error's status."""
    metadata = ((DETAILS_KEY, to_status(error).SerializeToString()), *error.trailers.items())
    await context.abort(STATUS_CODES[error.reason.code], error.public_message, metadata)


def to_service_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """What a failed call meant; a status that no server of ours made is mapped by its code alone."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                return service_error_from_status(status_pb2.Status.FromString(bytes(value)))  # type: ignore[arg-type]
            except (DecodeError, KeyError):
                break
    return ServiceError(_foreign_reason(error.code()))


def _foreign_reason(code: grpc.StatusCode) -> Reason:
    known = Code.__members__.get(code.name)
    return FOREIGN_REASONS.get(known, Reason.INTERNAL) if known else Reason.INTERNAL


def service_error_from_status(status: status_pb2.Status) -> ServiceError:
    """The inverse of `to_status`.

    Raises:
        KeyError: the status has no ErrorInfo of ours.
    """
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    quota_failure = error_details_pb2.QuotaFailure()
    for packed in status.details:
        for message in (info, retry, bad_request, quota_failure):
            packed.Unpack(message)
    if info.domain != ERROR_DOMAIN:
        raise KeyError(info.domain)
    reason = Reason[info.reason]
    metadata = dict(info.metadata)
    return ServiceError(
        reason,
        detail=metadata.pop(DETAIL_METADATA, ""),
        violations=tuple(FieldViolation(item.field, item.description) for item in bad_request.field_violations),
        quotas=tuple(QuotaViolation(item.subject, item.description) for item in quota_failure.violations),
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if reason.retryable else None,
        metadata=metadata,
    )
