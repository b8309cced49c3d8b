"""The catalogue of everything that can be refused or fail towards a client: one cause, one code, one public text.

Knows no gRPC objects (`cluster.rpc.status` turns a `ServiceError` into a status with google.rpc details).
Public texts hold no path, pointer, prompt or peer address.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

ERROR_DOMAIN = "argosy.dev"


class Code(enum.Enum):
    """gRPC status codes by name; values are the wire numbers (grpc/doc/statuscodes.md)."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Reason(enum.Enum):
    """Why: (code, retryable, text). Names are sent as `ErrorInfo.reason` and never change meaning."""

    INVALID_FIELD = (Code.INVALID_ARGUMENT, False, "the request has invalid fields")
    UNKNOWN_MODEL = (Code.NOT_FOUND, False, "unknown model")
    REQUEST_TOO_LARGE = (Code.RESOURCE_EXHAUSTED, False, "the request is larger than this server accepts")
    REFUSED = (Code.FAILED_PRECONDITION, False, "the replicas of this model cannot hold this request")
    UNAUTHENTICATED = (Code.UNAUTHENTICATED, False, "this needs valid credentials")
    FORBIDDEN = (Code.PERMISSION_DENIED, False, "these credentials do not allow that")
    UNKNOWN_RESOURCE = (Code.NOT_FOUND, False, "there is no such thing")
    DUPLICATE = (Code.ALREADY_EXISTS, False, "this was done or asked for before")
    QUOTA_EXCEEDED = (Code.RESOURCE_EXHAUSTED, True, "a limit of this tenant leaves no room for the request")
    LEDGER_UNAVAILABLE = (Code.UNAVAILABLE, True, "identity and usage cannot be checked now")
    RESERVATION_LOST = (Code.UNAVAILABLE, True, "the reservation of this request has lapsed")
    OVERLOADED = (Code.RESOURCE_EXHAUSTED, True, "no room for this request now")
    NO_REPLICA = (Code.UNAVAILABLE, True, "no replica of this model can take requests now")
    RESUME_REFUSED = (Code.FAILED_PRECONDITION, False, "this answer cannot be resumed; ask again")
    RESUMED_ELSEWHERE = (Code.FAILED_PRECONDITION, False, "the client went on with this request at another router")
    QUARANTINED = (Code.FAILED_PRECONDITION, False, "replicas were lost in the first steps of this request, twice")
    REPLICA_LOST = (Code.UNAVAILABLE, True, "the replica was lost and no other could continue in time")
    UNREACHABLE = (Code.UNAVAILABLE, True, "the server cannot be reached")
    SHUTTING_DOWN = (Code.UNAVAILABLE, True, "this router is shutting down")
    DEADLINE = (Code.DEADLINE_EXCEEDED, False, "the deadline passed before the answer was complete")
    CLIENT_CANCELLED = (Code.CANCELLED, False, "the client cancelled the request")
    STALE_EPOCH = (Code.FAILED_PRECONDITION, True, "the replica was rebuilt since the router last looked")
    PROTOCOL_VERSION = (Code.FAILED_PRECONDITION, False, "router and replica speak different protocol versions")
    UNSUPPORTED = (Code.UNIMPLEMENTED, False, "this server does not support that")
    INTERNAL = (Code.INTERNAL, False, "internal error")

    @property
    def code(self) -> Code:
        return self.value[0]

    @property
    def retryable(self) -> bool:
        return self.value[1]

    @property
    def text(self) -> str:
        return self.value[2]


@dataclass(frozen=True)
class FieldViolation:
    """One field that is wrong: its path in the request (`sampling.temperature`) and what would be right."""

    field: str
    description: str


@dataclass(frozen=True)
class QuotaViolation:
    """One limit that was met: whose (`router`, a tenant's name) and which."""

    subject: str
    description: str


@dataclass
class ServiceError(Exception):
    """A refusal or failure that a client sees. `detail` is appended to the reason's text and is public too."""

    reason: Reason
    detail: str = ""
    violations: tuple[FieldViolation, ...] = ()
    quotas: tuple[QuotaViolation, ...] = ()
    retry_after: float | None = None
    """Seconds after which a retry may succeed; only for retryable reasons."""
    metadata: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict, compare=False)
    """Trailing metadata that comes with the status."""

    @property
    def public_message(self) -> str:
        parts = [self.reason.text]
        if self.detail:
            parts.append(self.detail)
        parts.extend(f"{violation.field}: {violation.description}" for violation in self.violations)
        return "; ".join(parts)

    def __str__(self) -> str:
        return f"{self.reason.name}: {self.public_message}"


class ConfigurationError(Exception):
    """The operator's mistake (file, flag, weights, ports): one line that names the cause and the fix."""
