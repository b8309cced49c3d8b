"""Access tokens of OpenID Connect providers: signature, issuer, audience, times, then tenant and scopes from claims.

Keys are fetched in the background and on the first sight of an unknown `kid`, but never more often than
`REFRESH_PAUSE_SECONDS`, so that forged tokens cannot make us hammer the provider. While it is absent the last keys
serve until `KEY_AGE_SECONDS`; then tokens are refused. Knows claims; no keys of our own, no methods.

Source: RFC 7519 (JWT), RFC 9068 (access tokens), RFC 8725 (best practice).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import jwt

from cluster.clock import Clock
from cluster.config import OidcConfig
from cluster.errors import Reason, ServiceError
from cluster.identity.authenticator import TokenSubject
from cluster.identity.principal import Scope
from cluster.identity.web import ProviderError, discover, fetch_json
from cluster.ids import TenantId

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Asymmetric ones only: with a shared secret whoever can check a token can make one."""
KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
REFUSED_HEADERS = frozenset({"crit", "jwk", "jku", "x5c", "x5u"})
"""Extensions that we do not know, and keys that the token brings along."""
TOKEN_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
LEEWAY_SECONDS = 30
REFRESH_SECONDS = 300.0
REFRESH_PAUSE_SECONDS = 10.0
KEY_AGE_SECONDS = 6 * 3600.0


def _invalid() -> ServiceError:
    """Whatever is wrong with a token, its bearer is told no more."""
    return ServiceError(Reason.UNAUTHENTICATED)


class Provider:
    """One issuer's keys."""

    def __init__(self, config: OidcConfig, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -KEY_AGE_SECONDS
        self._tried_at = -REFRESH_PAUSE_SECONDS
        self._refreshing: asyncio.Task[None] | None = None

    async def keep_fresh(self) -> None:
        """Fetch the keys now and then, for ever."""
        while True:
            await self.refresh()
            await self._clock.sleep(REFRESH_SECONDS if self._keys else REFRESH_PAUSE_SECONDS)

    async def key(self, key_id: str) -> jwt.PyJWK:
        """
        Raises:
            ServiceError: there is no such key, or the keys cannot be known.
        """
        if key_id not in self._keys or self._are_too_old:
            await self.refresh()
        if self._are_too_old:
            raise ServiceError(Reason.LEDGER_UNAVAILABLE, retry_after=REFRESH_PAUSE_SECONDS)
        if key_id not in self._keys:
            raise _invalid()
        return self._keys[key_id]

    async def refresh(self) -> None:
        """Fetch the keys, unless that was tried just now; callers who come meanwhile wait for the same answer."""
        now = self._clock.monotonic()
        if self._refreshing is None:
            if now - self._tried_at < REFRESH_PAUSE_SECONDS:
                return
            self._tried_at = now
            self._refreshing = asyncio.create_task(self._fetch())
        await asyncio.shield(self._refreshing)

    @property
    def _are_too_old(self) -> bool:
        return self._clock.monotonic() - self._fetched_at >= KEY_AGE_SECONDS

    async def _fetch(self) -> None:
        try:
            self._keys = await asyncio.to_thread(_fetch_keys, self.config.issuer)
            self._fetched_at = self._clock.monotonic()
        except ProviderError as error:
            log.warning("keys of %s: %s", self.config.issuer, error)
        finally:
            self._refreshing = None


def _fetch_keys(issuer: str) -> dict[str, jwt.PyJWK]:
    address = discover(issuer).get("jwks_uri")
    if not isinstance(address, str):
        raise ProviderError(f"{issuer}: names no jwks_uri")
    keys = {}
    for entry in fetch_json(address).get("keys", ()):
        # Symmetric keys, keys for encryption and kinds that we do not know stay out.
        if (
            entry.get("kty") in KINDS.values()
            and entry.get("use", "sig") == "sig"
            and isinstance(entry.get("kid"), str)
        ):
            try:
                keys[entry["kid"]] = jwt.PyJWK(entry)
            except jwt.PyJWTError as error:
                log.warning("a key of %s: %s", issuer, error)
    if not keys:
        raise ProviderError(f"{address}: holds no key that can be used")
    return keys


class OidcVerifier:
    """Checks tokens of the configured issuers."""

    def __init__(self, configs: Sequence[OidcConfig], clock: Clock) -> None:
        self._clock = clock
        self.providers = {config.issuer: Provider(config, clock) for config in configs}

    async def keep_fresh(self) -> None:
        """Fetch keys in the background, for ever."""
        await asyncio.gather(*(provider.keep_fresh() for provider in self.providers.values()))

    async def verify(self, token: str) -> TokenSubject:
        """
        Raises:
            ServiceError: the token is not valid, or cannot be checked now.
        """
        try:
            header = jwt.get_unverified_header(token)
            issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _invalid() from None
        provider = self.providers.get(issuer) if isinstance(issuer, str) else None
        if provider is None:
            raise _invalid()
        _check_header(header)
        key = await provider.key(header["kid"])
        return self._subject(provider.config, self._claims(token, header["alg"], key, provider.config))

    def _claims(self, token: str, algorithm: str, key: jwt.PyJWK, config: OidcConfig) -> dict[str, Any]:
        if key.key_type != KINDS[algorithm[:2]]:
            raise _invalid()
        try:
            return jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=config.audience,
                issuer=config.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError):
            raise _invalid() from None

    def _subject(self, config: OidcConfig, claims: dict[str, Any]) -> TokenSubject:
        tenant = config.tenant if config.tenant is not None else claims.get(config.tenant_claim)
        granted = claims.get(config.scope_claim, ())
        names = granted.split() if isinstance(granted, str) else granted
        if not isinstance(tenant, str) or not isinstance(names, list | tuple):
            raise _invalid()
        scopes = {Scope(scope) for name in names if isinstance(name, str) for scope in config.scopes.get(name, ())}
        subject = f"{config.issuer}#{claims['sub']}"
        return TokenSubject(TenantId(tenant), subject, frozenset(scopes), float(claims["exp"]) + LEEWAY_SECONDS)


def _check_header(header: dict[str, Any]) -> None:
    kind = header.get("typ", "JWT")
    if (
        header.get("alg") not in ALGORITHMS
        or REFUSED_HEADERS & header.keys()
        or not isinstance(header.get("kid"), str)
        or not isinstance(kind, str)
        or kind.lower() not in TOKEN_TYPES
    ):
        raise _invalid()
