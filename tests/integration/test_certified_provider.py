"""A certified OpenID provider, started by the test: token, stream, usage record, key rotation, outage."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from cluster.errors import Reason, ServiceError
from cluster.identity import authenticator, oidc
from cluster.identity.web import fetch_json
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.guarded_world import Credentials, Reply, bearer, guarded_world
from tests.support.router_world import request, run_async

SOURCE = Path(__file__).parents[1] / "support" / "oidc_provider"

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm (Debian: npm)"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The provider, installed as its lock file says."""
    folder = tmp_path_factory.mktemp("provider")
    for file in SOURCE.iterdir():
        shutil.copy(file, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install the provider: {done.stderr[-300:]}")
    return folder / "provider.mjs"


@asynccontextmanager
async def running(program: Path, port: int, key_id: str) -> AsyncIterator[None]:
    """The provider with one fresh key of that name."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    keys = program.with_name(f"{key_id}.json")
    keys.write_text(json.dumps({"keys": [{**json.loads(RSAAlgorithm.to_jwk(key)), "kid": key_id, "use": "sig"}]}))
    process = await asyncio.create_subprocess_exec(
        *("node", str(program), str(port), str(keys)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
        yield
    finally:
        process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined] # asyncio leaves its pipes open otherwise


async def token(issuer: str) -> Credentials:
    form = {
        "grant_type": "client_credentials",
        "client_id": "robot",
        "client_secret": "robot-secret",
        "scope": "argosy",
    }
    answer = await asyncio.to_thread(fetch_json, f"{issuer}/token", form)
    return bearer(answer["access_token"])


async def when_keys_are_known(call: Callable[[], Awaitable[Reply]]) -> Reply:
    """Call as a client does: told to come back later, it does.

    The router asks the provider for its keys all the time; one question may fall in the provider's start and fail.
    """
    async with asyncio.timeout(10):
        while True:
            try:
                return await call()
            except ServiceError as error:
                if error.reason is not Reason.LEDGER_UNAVAILABLE:
                    raise
                await asyncio.sleep(0.2)


@run_async
async def test_token_stream_usage_rotation_and_outage(
    smollm2_dir: Path, tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "REFRESH_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(authenticator, "CACHE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    issuer = f"http://127.0.0.1:{port}"
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.002)
    sections = {"identity": {"mode": "required", "oidc": [{"issuer": issuer, "audience": "argosy"}]}}
    async with guarded_world(smollm2_dir, tmp_path, fake, **sections) as world:
        await world.tenant("acme")
        async with running(program, port, "first"):
            old = await token(issuer)
            reply = await when_keys_are_known(lambda: world.generate(request(max_tokens=7), old))
            record = await world.record(reply.started.request_id, old)
            assert (record.tenant, record.completion_tokens) == ("acme", 7)
            assert record.subject == f"{issuer}#robot"
        await world.generate(request(max_tokens=1), old)  # its absence changes nothing for a while
        async with running(program, port, "second"):
            await asyncio.sleep(0.2)
            fresh = await token(issuer)
            await world.generate(request(max_tokens=1), fresh)
            assert (await world.refusal(request(), old)).reason is Reason.UNAUTHENTICATED
