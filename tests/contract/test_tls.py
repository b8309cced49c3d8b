"""TLS on a port: who is trusted, and certificates that change while the server runs."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster import rpc
from cluster.cli.client import find_model, open_channel
from cluster.errors import ConfigurationError
from tests.support.guarded_world import guarded_world
from tests.support.router_world import MODEL, run_async


class Authority:
    """Signs certificates for this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._sign(self.name, self.key, is_authority=True))

    def issue(self, name: str) -> rpc.TlsFiles:
        """Write a fresh certificate and key under that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        files = rpc.TlsFiles(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        files.certificate.write_bytes(self._sign(subject, key, is_authority=False))
        pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        files.key.write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))
        return files

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        return bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


async def serve(files: rpc.TlsFiles) -> tuple[Any, str]:
    server = rpc.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    address = rpc.listen(server, "127.0.0.1:0", "test", rpc.server_credentials(files))
    await server.start()
    return server, address


async def is_let_in(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    async with rpc.channel(address, credentials=credentials) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
    return True


@run_async
async def test_only_who_trusts_and_is_trusted_gets_through(tmp_path: Path) -> None:
    own, stranger = Authority(tmp_path, "own"), Authority(tmp_path, "stranger")
    issued = own.issue("server")
    server, address = await serve(rpc.TlsFiles(issued.certificate, issued.key, own.file))
    try:
        assert await is_let_in(address, rpc.channel_credentials(own.file, own.issue("client")))
        assert not await is_let_in(address, rpc.channel_credentials(own.file)), "shows nothing"
        assert not await is_let_in(address, rpc.channel_credentials(own.file, stranger.issue("impostor")))
        assert not await is_let_in(address, rpc.channel_credentials(stranger.file, own.issue("client")))
        assert not await is_let_in(address, None), "plain text"
    finally:
        await server.stop(0)


@run_async
async def test_certificates_change_without_a_restart(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    files = old.issue("server")
    server, address = await serve(files)
    try:
        assert await is_let_in(address, rpc.channel_credentials(old.file))
        files.key.write_bytes(new.issue("other").key.read_bytes())
        assert await is_let_in(address, rpc.channel_credentials(old.file)), "half a pair is not taken"
        new.issue("server")
        assert await is_let_in(address, rpc.channel_credentials(new.file))
        assert not await is_let_in(address, rpc.channel_credentials(old.file))
    finally:
        await server.stop(0)


def test_files_that_do_not_fit_end_the_start(tmp_path: Path) -> None:
    one, two = Authority(tmp_path, "one"), Authority(tmp_path, "two")
    with pytest.raises(ConfigurationError, match="tls"):
        rpc.server_credentials(rpc.TlsFiles(one.issue("a").certificate, two.issue("b").key))
    with pytest.raises(ConfigurationError, match="missing"):
        rpc.channel_credentials(tmp_path / "missing.pem")


@pytest.mark.model
@run_async
async def test_a_router_encrypts_its_public_port(
    smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Authority(tmp_path, "own")
    issued = own.issue("router")
    tls = {"certificate": str(issued.certificate), "key": str(issued.key)}
    sections = {"router": {"listen": "127.0.0.1:0", "tls": tls}}
    monkeypatch.setenv("ARGOSY_TLS_CA", str(own.file))
    async with guarded_world(smollm2_dir, tmp_path, mode="anonymous", **sections) as world:
        async with open_channel(f"tls://{world.addresses[0]}") as channel:
            assert (await find_model(channel, None, "")).name == MODEL
        assert not await is_let_in(world.addresses[0], None)
