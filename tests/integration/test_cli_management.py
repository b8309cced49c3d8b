"""`argosy tenants`, `keys` and `usage` as a shell runs them: first on the file, then through a router with a key."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from cluster.cli.credentials import token_file
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.guarded_world import guarded_world
from tests.support.identity_provider import AUDIENCE, identity_provider
from tests.support.router_world import MODEL, run_async

pytestmark = pytest.mark.model


async def argosy(*arguments: str, key: str = "") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cluster.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "ARGOSY_API_KEY": key},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@run_async
async def test_from_the_first_key_to_a_bill(smollm2_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "argosy.yaml"
    ledger = {"path": str(tmp_path / "ledger.db")}
    file.write_text(yaml.safe_dump({"models": [{"name": MODEL, "path": str(smollm2_dir)}], "ledger": ledger}))
    on_file = ("-f", str(file))
    assert (await argosy("tenants", "set", "ops", *on_file))[0] == 0
    status, admin_key, said = await argosy("keys", "create", "ops", "--scope", "admin", "--scope", "usage", *on_file)
    assert status == 0
    assert "shown this once" in said
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.002)
    async with guarded_world(smollm2_dir, tmp_path, fake) as world:
        there = ("--address", world.addresses[0])
        status, out, _ = await argosy("tenants", "set", "acme", "--tokens-per-day", "500", *there, key=admin_key)
        assert status == 0
        assert "500 tokens per day" in out
        _, acme_key, _ = await argosy("keys", "create", "acme", *there, key=admin_key)
        ask = ("generate", "--raw", "--max-tokens", "12", "Hello", *there)
        status, _, error = await argosy(*ask)
        assert (status, error.strip()) == (1, "argosy: this needs valid credentials")
        assert (await argosy(*ask, key=acme_key))[0] == 0
        await world.until_settled()
        _, out, _ = await argosy("usage", "--json", *there, key=acme_key)
        [summary] = json.loads(out)["summaries"]
        assert (summary["tenant"], summary["completion_tokens"], summary["requests"]) == ("acme", "12", "1")
        status, _, error = await argosy("tenants", "list", *there, key=acme_key)
        assert status == 1
        assert "the scope 'admin' is needed" in error
        _, listed, _ = await argosy("keys", "list", *on_file)
        assert admin_key.strip() not in listed
        assert admin_key.split("_")[1] in listed


@run_async
async def test_login_token_stream_and_usage(smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device flow: the user confirms while the command waits, and the token opens the router."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    fake = FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.002)
    with identity_provider() as provider:
        oidc = {"issuer": provider.issuer, "audience": AUDIENCE}
        sections = {"identity": {"mode": "required", "oidc": [oidc]}}
        async with guarded_world(smollm2_dir, tmp_path, fake, **sections) as world:
            await world.tenant("acme")
            login = asyncio.create_task(argosy("login", "--issuer", provider.issuer))
            async with asyncio.timeout(30):
                while not provider.num_polls:
                    await asyncio.sleep(0.02)
            provider.is_approved = True
            status, out, _ = await login
            assert status == 0
            assert "ABCD-EFGH" in out
            assert token_file().stat().st_mode & 0o077 == 0
            there = ("--address", world.addresses[0])
            assert (await argosy("generate", "--raw", "--max-tokens", "9", "Hello", *there))[0] == 0
            await world.until_settled()
            _, out, _ = await argosy("usage", "--json", *there)
            [summary] = json.loads(out)["summaries"]
            assert (summary["tenant"], summary["completion_tokens"]) == ("acme", "9")


@run_async
async def test_a_login_that_cannot_be_ends_in_one_line() -> None:
    with identity_provider() as provider:
        provider.is_absent = True
        status, _, error = await argosy("login", "--issuer", provider.issuer)
        assert status == 1
        assert error.count("\n") == 1
        assert "503" in error
    assert (await argosy("login", "--issuer", "http://id.example.com"))[0] == 2
    assert (await argosy("login"))[0] == 2
