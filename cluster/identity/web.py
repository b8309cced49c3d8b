"""JSON from an identity provider: over TLS unless it is on this machine; small, and soon. Knows no tokens."""

from __future__ import annotations

import ipaddress
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

ANSWER_BYTES = 1024 * 1024
ANSWER_SECONDS = 5.0


class ProviderError(Exception):
    """The provider did not answer, or not with what it should; `answer` is its JSON if it sent any."""

    def __init__(self, text: str, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.answer = answer or {}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """A provider's addresses are where it says they are; a redirect could lead to anybody."""
        return


_opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def check_address(address: str) -> str:
    """
    Raises:
        ValueError: it is no https address, nor http on a loopback one.
    """
    parts = urllib.parse.urlsplit(address)
    if not (parts.scheme == "https" and parts.hostname) and not (parts.scheme == "http" and _is_local(parts.hostname)):
        raise ValueError(f"{address!r} is not an https address")
    return address


def _is_local(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def fetch_json(address: str, form: Mapping[str, str] | None = None) -> dict[str, Any]:
    """GET, or POST a form; blocks.

    Raises:
        ProviderError: there is no answer, or it is an error, or no JSON object.
    """
    body = None if form is None else urllib.parse.urlencode(form).encode()
    try:
        request = urllib.request.Request(check_address(address), body, {"Accept": "application/json"})  # noqa: S310
        with _opener.open(request, timeout=ANSWER_SECONDS) as response:
            text = response.read(ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise ProviderError(f"{address}: HTTP {error.code}", _parse(error.read(ANSWER_BYTES))) from None
    except (OSError, ValueError) as error:
        raise ProviderError(f"{address}: {error}") from None
    answer = _parse(text)
    if len(text) > ANSWER_BYTES or answer is None:
        raise ProviderError(f"{address}: not a JSON object of at most {ANSWER_BYTES} bytes")
    return answer


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def discover(issuer: str) -> dict[str, Any]:
    """The provider's own description (OpenID Connect Discovery 1.0); blocks.

    Raises:
        ProviderError: there is none, or it is another issuer's.
    """
    address = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    found = fetch_json(address)
    if found.get("issuer") != issuer:
        raise ProviderError(f"{address}: describes the issuer {found.get('issuer')!r}")
    return found
