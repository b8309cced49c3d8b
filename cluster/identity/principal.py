"""Who is calling, and what their tenant may do. Knows names and limits; no credentials, no network."""

from __future__ import annotations

import enum
from contextvars import ContextVar
from dataclasses import dataclass, field

from cluster.errors import Reason, ServiceError
from cluster.ids import TenantId
from cluster.ledger.records import ANONYMOUS, NO_LIMITS, Limits


class Scope(enum.Enum):
    """What credentials allow. None contains another."""

    GENERATE = "generate"
    """Ask models."""
    USAGE = "usage"
    """Read the own tenant's usage."""
    ADMIN = "admin"
    """Manage tenants and keys, read everybody's usage."""


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What a tenant may do; an empty tuple allows all."""

    models: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    limits: Limits = field(default_factory=lambda: NO_LIMITS)
    home: str = ""
    """The region whose store keeps the limits, over all regions. Empty: every store has its own."""
    priority: int = 0
    """The most urgent class that its requests get (`GenerationSpec.priority`; smaller is more urgent)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose credentials were checked, or nobody in particular where that is allowed."""

    tenant: TenantId
    subject: str
    """`key:ID`, or the provider's `sub`."""
    scopes: frozenset[Scope]
    policy: TenantPolicy = TenantPolicy()

    def check_scope(self, scope: Scope) -> None:
        """
        Raises:
            ServiceError: the credentials do not have it.
        """
        if scope not in self.scopes:
            raise ServiceError(Reason.FORBIDDEN, f"the scope {scope.value!r} is needed")

    def check_use(self, model: str, region: str) -> None:
        """
        Raises:
            ServiceError: the tenant may not use that model, or not in that region.
        """
        if self.policy.models and model not in self.policy.models:
            raise ServiceError(Reason.FORBIDDEN, f"the model {model!r} is not among this tenant's")
        if self.policy.regions and region not in self.policy.regions:
            raise ServiceError(Reason.FORBIDDEN, f"the region {region!r} is not among this tenant's")

    @property
    def cache_domain(self) -> bytes:
        """Prefixes are shared within it, never beyond: whether a prompt is cached shows in the time to its answer."""
        return b"" if self.tenant == ANONYMOUS else self.tenant.encode()


NOBODY = Caller(ANONYMOUS, "anonymous", frozenset({Scope.GENERATE, Scope.USAGE}))
"""A call without credentials, where those are not required."""

_caller: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def current_caller() -> Caller:
    """Who made the call that is being handled."""
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """For the rest of the call being handled."""
    _caller.set(caller)
