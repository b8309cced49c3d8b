"""Tokens of a provider with real keys: the good ones, every bad one, rotation, floods and absence."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cluster.clock import ManualClock
from cluster.config import OidcConfig
from cluster.errors import Reason, ServiceError
from cluster.identity.oidc import KEY_AGE_SECONDS, REFRESH_PAUSE_SECONDS, OidcVerifier
from cluster.identity.principal import Scope
from tests.support.identity_provider import AUDIENCE, IdentityProvider, forge, identity_provider
from tests.support.router_world import run_async


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with identity_provider() as running:
        yield running


def verifier(provider: IdentityProvider, clock: ManualClock | None = None, **fields: object) -> OidcVerifier:
    config = OidcConfig.model_validate({"issuer": provider.issuer, "audience": AUDIENCE, **fields})
    return OidcVerifier([config], clock or ManualClock(start=1e6))


async def refusal(verifier: OidcVerifier, token: str) -> Reason:
    with pytest.raises(ServiceError) as caught:
        await verifier.verify(token)
    assert caught.value.detail == "", "why stays with us"
    return caught.value.reason


@pytest.mark.parametrize("algorithm", ["RS256", "PS384", "ES256"])
@run_async
async def test_a_good_token_names_its_subject(provider: IdentityProvider, algorithm: str) -> None:
    provider.add_ec("ec-1")
    key_id = "ec-1" if algorithm == "ES256" else "rsa-1"
    known = await verifier(provider).verify(
        provider.token(key_id=key_id, algorithm=algorithm, headers={"typ": "at+jwt"})
    )
    assert (known.tenant, known.subject) == ("acme", f"{provider.issuer}#u1")
    assert known.scopes == {Scope.GENERATE, Scope.USAGE}


@run_async
async def test_claims_map_as_configured(provider: IdentityProvider) -> None:
    fields = {"tenant": "house", "scope_claim": "roles", "scopes": {"boss": ["admin"], "x": ["usage"]}}
    known = await verifier(provider, **fields).verify(provider.token(roles=["boss", "unknown", 7]))
    assert (known.tenant, known.scopes) == ("house", {Scope.ADMIN})


def _signed_with_public_key(provider: IdentityProvider) -> str:
    """HS256 with the RSA public key as the secret: what a verifier that trusts `alg` accepts."""
    token = forge({"alg": "HS256", "kid": "rsa-1"}, json.loads(_payload(provider.token())))
    body = token.rpartition(".")[0]
    digest = hmac.new(provider.public_pem(), body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def _payload(token: str) -> bytes:
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _with_own_key(provider: IdentityProvider) -> str:
    stranger = IdentityProvider()
    stranger.issuer = provider.issuer
    return stranger.token(headers={"jwk": stranger.public_jwk("rsa-1")})


def _stranger(provider: IdentityProvider) -> str:
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(claims, other, "RS256", headers={"kid": "rsa-1"})


BAD: dict[str, Callable[[IdentityProvider], str]] = {
    "no token": lambda p: "x",
    "two parts": lambda p: p.token().rpartition(".")[0],
    "expired": lambda p: p.token(exp=int(time.time()) - 60),
    "not yet": lambda p: p.token(nbf=int(time.time()) + 120),
    "no expiry": lambda p: p.token(exp=None),
    "no subject": lambda p: p.token(sub=None),
    "wrong issuer": lambda p: p.token(iss="https://elsewhere.example"),
    "issuer with a slash": lambda p: p.token(iss=f"{p.issuer}/"),
    "no issuer": lambda p: p.token(iss=None),
    "wrong audience": lambda p: p.token(aud="another"),
    "no audience": lambda p: p.token(aud=None),
    "no tenant": lambda p: p.token(tenant=None),
    "tenant is no string": lambda p: p.token(tenant=["acme"]),
    "scope is a number": lambda p: p.token(scope=7),
    "alg none": lambda p: forge({"alg": "none", "kid": "rsa-1"}, json.loads(_payload(p.token()))),
    "HS256 with the RSA key": _signed_with_public_key,
    "another kind of key": lambda p: p.token().replace(p.token().split(".")[0], _header(alg="ES256", kid="rsa-1")),
    "crit": lambda p: p.token(headers={"crit": ["exp"]}),
    "brings its own key": _with_own_key,
    "says where its key is": lambda p: p.token(headers={"jku": f"{p.issuer}/keys"}),
    "no kid": lambda p: p.token(headers={"kid": None}),
    "unknown kid": lambda p: p.token(headers={"kid": "nobody"}),
    "an id token's type": lambda p: p.token(headers={"typ": "logout+jwt"}),
    "another's signature": _stranger,
    "changed payload": lambda p: ".".join(
        [p.token().split(".")[0], p.token(sub="u2").split(".")[1], p.token().split(".")[2]]
    ),
    "deep": lambda p: f"{_header(alg='RS256', kid='rsa-1')}.{base64.urlsafe_b64encode(b'[' * 6000).decode()}.AA",
}


def _header(**fields: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("kind", BAD)
@run_async
async def test_a_bad_token_is_refused_and_not_told_why(provider: IdentityProvider, kind: str) -> None:
    assert await refusal(verifier(provider), BAD[kind](provider)) is Reason.UNAUTHENTICATED


@run_async
async def test_keys_rotate_without_a_restart(provider: IdentityProvider) -> None:
    clock = ManualClock(start=1e6)
    checks = verifier(provider, clock)
    old = provider.token()
    await checks.verify(old)
    provider.add_ec("ec-2")
    del provider.keys["rsa-1"]
    clock.advance(REFRESH_PAUSE_SECONDS)
    await checks.verify(provider.token(key_id="ec-2", algorithm="ES256"))
    assert await refusal(checks, old) is Reason.UNAUTHENTICATED, "a key that was taken back opens nothing"


@run_async
async def test_a_flood_of_unknown_kids_asks_the_provider_once(provider: IdentityProvider) -> None:
    checks = verifier(provider)
    good = provider.token()
    bad = [provider.token(headers={"kid": f"forged-{number}"}) for number in range(200)]
    results = await asyncio.gather(*(checks.verify(token) for token in bad), return_exceptions=True)
    assert all(isinstance(result, ServiceError) for result in results)
    await checks.verify(good)
    assert provider.num_key_requests == 1


@run_async
async def test_an_absent_provider_changes_nothing_for_a_while(provider: IdentityProvider) -> None:
    clock = ManualClock(start=1e6)
    checks = verifier(provider, clock)
    token = provider.token(exp=int(time.time()) + 10**6)
    await checks.verify(token)
    provider.is_absent = True
    clock.advance(KEY_AGE_SECONDS - 1)
    await checks.verify(token)
    clock.advance(REFRESH_PAUSE_SECONDS + 1)
    assert await refusal(checks, token) is Reason.LEDGER_UNAVAILABLE
    provider.is_absent = False
    clock.advance(REFRESH_PAUSE_SECONDS)
    await checks.verify(token)


@run_async
async def test_a_provider_that_was_never_there_lets_nobody_in(provider: IdentityProvider) -> None:
    provider.is_absent = True
    assert await refusal(verifier(provider), provider.token()) is Reason.LEDGER_UNAVAILABLE


@pytest.mark.parametrize("issuer", ["http://id.example.com", "ftp://127.0.0.1", "id.example.com"])
def test_an_issuer_without_tls_is_refused(issuer: str) -> None:
    with pytest.raises(ValueError, match="https"):
        OidcConfig(issuer=issuer, audience="a")
