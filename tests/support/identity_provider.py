"""A small OpenID Connect provider on loopback: discovery, real RSA and EC keys, tokens, the device flow. Has faults."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "argosy"


class IdentityProvider:
    """What its server answers, and how often it was asked."""

    def __init__(self) -> None:
        self.issuer = ""
        self.keys: dict[str, Any] = {}
        self.num_key_requests = 0
        self.is_absent = False
        self.is_approved = False
        self.num_polls = 0
        self.add_rsa("rsa-1")

    def add_rsa(self, key_id: str) -> None:
        self.keys[key_id] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def add_ec(self, key_id: str) -> None:
        self.keys[key_id] = ec.generate_private_key(ec.SECP256R1())

    def token(self, *, key_id: str = "rsa-1", algorithm: str = "RS256", headers: Any = None, **claims: Any) -> str:
        """A signed token, good unless the claims say otherwise; a claim of None is left out."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": AUDIENCE, "sub": "u1", "iat": now, "exp": now + 300, "scope": "argosy"}
        chosen = {name: value for name, value in (good | {"tenant": "acme"} | claims).items() if value is not None}
        named = {"kid": key_id, **(headers or {})}
        named = {name: value for name, value in named.items() if value is not None}
        return jwt.encode(chosen, self.keys[key_id], algorithm, headers=named)

    def public_pem(self, key_id: str = "rsa-1") -> bytes:
        pem, kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return bytes(self.keys[key_id].public_key().public_bytes(pem, kind))

    def public_jwk(self, key_id: str) -> dict[str, Any]:
        key = self.keys[key_id].public_key()
        algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPublicKey) else ECAlgorithm
        return {**json.loads(algorithm.to_jwk(key)), "kid": key_id, "use": "sig"}

    def answer(self, path: str, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        if self.is_absent:
            return 503, {}
        if path == "/.well-known/openid-configuration":
            names = {"jwks_uri": "keys", "device_authorization_endpoint": "device", "token_endpoint": "token"}
            return 200, {"issuer": self.issuer, **{key: f"{self.issuer}/{name}" for key, name in names.items()}}
        if path == "/keys":
            self.num_key_requests += 1
            return 200, {"keys": [self.public_jwk(key_id) for key_id in self.keys]}
        if path == "/device":
            where = {"verification_uri": f"{self.issuer}/activate", "user_code": "ABCD-EFGH"}
            return 200, {**where, "device_code": "d" * 20, "expires_in": 60, "interval": 0}
        if path == "/token" and form.get("device_code") == ["d" * 20]:
            self.num_polls += 1
            if not self.is_approved:
                return 400, {"error": "authorization_pending"}
            return 200, {"access_token": self.token(), "token_type": "Bearer", "expires_in": 300}
        return 404, {}


@contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    provider = IdentityProvider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            self._answer(parse_qs(self.rfile.read(size).decode()))

        def _answer(self, form: dict[str, list[str]]) -> None:
            status, content = provider.answer(self.path, form)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def forge(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token that no library would make."""
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
