"""A refusal as the OpenAI API words it: HTTP status, headers, error object. Knows the catalogue of errors alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cluster.errors import Code, FieldViolation, Reason, ServiceError
from cluster.rpc.status import DEFAULT_RETRY_SECONDS

STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
"""As grpc-gateway maps them."""
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    Reason.UNKNOWN_MODEL: "model_not_found",
    Reason.UNAUTHENTICATED: "invalid_api_key",
    Reason.QUOTA_EXCEEDED: "rate_limit_exceeded",
    Reason.OVERLOADED: "server_overloaded",
}
_FIELDS = (
    ("sampling.logit_bias", "logit_bias"),
    ("sampling.", ""),
    ("stop.strings", "stop"),
    ("stop.token_ids", "stop_token_ids"),
    ("stop.ignore_end_of_text", "ignore_eos"),
    ("stop.", ""),
    ("num_choices", "n"),
    ("chat.tools", "tools"),
    ("chat", "messages"),
    ("token_ids.ids", "prompt"),
    ("idempotency_key", "Idempotency-Key"),
)
"""Beginnings of our own field names and what stands in their place here."""


def http_status(error: ServiceError) -> int:
    return 413 if error.reason is Reason.REQUEST_TOO_LARGE else STATUS[error.reason.code]


def headers(error: ServiceError) -> dict[str, str]:
    """When to come back, and what the tenant's limits leave."""
    found = limit_headers(error.trailers)
    if error.reason.retryable:
        found["Retry-After"] = str(math.ceil(error.retry_after or DEFAULT_RETRY_SECONDS))
    elif error.reason.code not in (Code.INTERNAL, Code.DEADLINE_EXCEEDED):
        # OpenAI's clients try again after some statuses on their own, 409 among them; that would change nothing.
        found["x-should-retry"] = "false"
    if error.reason is Reason.UNAUTHENTICATED:
        found["WWW-Authenticate"] = "Bearer"
    return found


def limit_headers(trailers: Mapping[str, str]) -> dict[str, str]:
    """`x-ratelimit-*`; the limits of a minute under the names that OpenAI's have too."""
    return {name.removesuffix("-per-minute"): value for name, value in trailers.items()} | dict(trailers)


def error_object(error: ServiceError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, with the server's request id where there is one."""
    status = http_status(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    parts = [error.reason.text, *filter(None, [error.detail])]
    parts += [f"{public_field(violation.field)}: {violation.description}" for violation in error.violations]
    param = public_field(error.violations[0].field) if error.violations else None
    code = _CODES.get(error.reason, error.reason.name.lower())
    return {"error": {"message": "; ".join(parts), "type": kind, "param": param, "code": code}}


def public_field(path: str) -> str:
    """One of our field paths in this API's words."""
    for ours, theirs in _FIELDS:
        if path.startswith(ours):
            return theirs + path[len(ours) :]
    return path


def of_validation(error: ValidationError) -> ServiceError:
    """Every field that is wrong, each once: a union reports each of its members."""
    violations: dict[str, FieldViolation] = {}
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        path = _path(problem["loc"])
        unknown = problem["type"] == "extra_forbidden"
        text = "is not known to this server" if unknown else problem["msg"][:1].lower() + problem["msg"][1:]
        violations.setdefault(path, FieldViolation(path, text))
    return ServiceError(Reason.INVALID_FIELD, violations=tuple(violations.values())[:8])


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`; names that pydantic adds for members of a union are left out."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"[a-z_]+", step) and step not in ("str", "text", "json_schema", "json_object"):
            path += f".{step}" if path else step
    return path or "body"
