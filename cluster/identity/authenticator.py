"""From a call's metadata to its caller, or a refusal. Knows keys and tokens; decides nothing about methods.

Whatever cannot be checked is refused: there is no way through a store or a provider that does not answer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cluster.clock import Clock
from cluster.errors import Reason, ServiceError
from cluster.identity.keys import StoredKey, find_keys, key_id_of, keyed_hash
from cluster.identity.principal import NOBODY, Caller, Scope
from cluster.identity.tenants import StoredTenant, find_tenants
from cluster.ids import TenantId
from cluster.ledger.database import Database
from cluster.ledger.ledger import StoredLedger

CACHE_SECONDS = 5.0
"""How long a verdict holds: within it a revoked key or a disabled tenant may still be served."""
CACHE_SIZE = 10_000
MAX_CREDENTIAL_BYTES = 8 * 1024

_Result = TypeVar("_Result")
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class TokenSubject:
    """What a provider's token says, checked."""

    tenant: TenantId
    subject: str
    scopes: frozenset[Scope]
    expires_at: float
    """Unix seconds."""


class TokenVerifier(Protocol):
    """Checks tokens that are not our own keys."""

    async def verify(self, token: str) -> TokenSubject:
        """
        Raises:
            ServiceError: it is not valid, or cannot be checked now.
        """


@dataclass(frozen=True, slots=True)
class _Verdict:
    outcome: Caller | Reason
    until: float
    """Monotonic seconds."""
    expires_at: float | None
    """Unix seconds."""


class Authenticator:
    """Knows callers by `authorization: Bearer …`."""

    def __init__(
        self,
        ledger: StoredLedger | None,
        secret: bytes,
        clock: Clock,
        *,
        anonymous: bool,
        tokens: TokenVerifier | None = None,
    ) -> None:
        """
        Args:
            ledger: whose database holds tenants and keys; None knows none.
            secret: that hashes of keys are keyed with.
            anonymous: calls without credentials are let in, as nobody.
            tokens: checks bearer tokens that are not keys.
        """
        self._ledger = ledger
        self._secret = secret
        self._clock = clock
        self._anonymous = anonymous
        self._tokens = tokens
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()
        """By the token's digest: no secrets are kept, and long tokens take no more room than short ones."""

    async def authenticate(self, metadata: Metadata) -> Caller:
        """
        Raises:
            ServiceError: the credentials are missing, malformed, unknown, expired or revoked, or cannot be checked.
        """
        values = [value for key, value in metadata if key == "authorization"]
        if not values:
            if self._anonymous:
                return NOBODY
            raise ServiceError(Reason.UNAUTHENTICATED)
        token = _bearer(values)
        digest = hashlib.blake2b(token.encode(), digest_size=16).digest()
        verdict = self._verdicts.get(digest)
        now = self._clock.monotonic()
        if verdict is None or now >= verdict.until:
            verdict = await self._check(token)
            self._remember(digest, verdict)
        outcome = verdict.outcome
        if isinstance(outcome, Reason) or (verdict.expires_at and self._clock.wall() >= verdict.expires_at):
            raise ServiceError(Reason.UNAUTHENTICATED)
        return outcome

    def forget(self) -> None:
        """Check everybody anew: a key or a tenant has changed here."""
        self._verdicts.clear()

    async def _check(self, token: str) -> _Verdict:
        try:
            caller, expires_at = await (self._check_key(token) if key_id_of(token) else self._check_token(token))
            outcome: Caller | Reason = caller
        except ServiceError as error:
            if error.reason is not Reason.UNAUTHENTICATED:
                raise
            outcome, expires_at = error.reason, None
        return _Verdict(outcome, self._clock.monotonic() + CACHE_SECONDS, expires_at)

    async def _check_key(self, token: str) -> tuple[Caller, float | None]:
        key_id = key_id_of(token)
        assert key_id is not None

        def find(database: Database) -> tuple[list[StoredKey], list[StoredTenant]]:
            keys = find_keys(database, "key_id", key_id)
            return keys, find_tenants(database, keys[0].tenant) if keys else []

        keys, tenants = await self._ask(find)
        digest = keyed_hash(self._secret, token)
        if not keys or not hmac.compare_digest(keys[0].hash, digest) or not keys[0].is_in_force(self._clock.wall()):
            raise ServiceError(Reason.UNAUTHENTICATED)
        key = keys[0]
        return self._caller(tenants, f"key:{key.key_id}", key.scopes), key.expires_at

    async def _check_token(self, token: str) -> tuple[Caller, float | None]:
        if self._tokens is None:
            raise ServiceError(Reason.UNAUTHENTICATED)
        known = await self._tokens.verify(token)
        tenants = await self._ask(lambda database: find_tenants(database, known.tenant))
        return self._caller(tenants, known.subject, known.scopes), known.expires_at

    async def _ask(self, function: Callable[[Database], _Result]) -> _Result:
        if self._ledger is None:
            raise ServiceError(Reason.UNAUTHENTICATED)
        return await self._ledger.change(function)

    def _caller(self, tenants: list[StoredTenant], subject: str, scopes: frozenset[Scope]) -> Caller:
        if not tenants or tenants[0].disabled:
            raise ServiceError(Reason.UNAUTHENTICATED)
        return Caller(tenants[0].tenant, subject, scopes, tenants[0].policy)

    def _remember(self, digest: bytes, verdict: _Verdict) -> None:
        self._verdicts[digest] = verdict
        self._verdicts.move_to_end(digest)
        if len(self._verdicts) > CACHE_SIZE:
            self._verdicts.popitem(last=False)


def _bearer(values: list[str | bytes]) -> str:
    """The one token of an `authorization: Bearer TOKEN`."""
    value = values[0]
    if len(values) != 1 or not isinstance(value, str) or len(value) > MAX_CREDENTIAL_BYTES:
        raise ServiceError(Reason.UNAUTHENTICATED)
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token or " " in token:
        raise ServiceError(Reason.UNAUTHENTICATED)
    return token
