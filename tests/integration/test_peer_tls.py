"""Mutual TLS between our own processes: every hop of a request, and whoever must not be let in."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from click.testing import CliRunner
from cryptography import x509

from argosy.internal.v1 import control_pb2, control_pb2_grpc, quota_pb2, replica_pb2, replica_pb2_grpc
from cluster import rpc
from cluster.cli import argosy
from cluster.cli.certificates import issue
from cluster.config import PeersConfig, parse_config
from cluster.control.service import Control, Directory, RegionView
from cluster.errors import ConfigurationError, Reason
from cluster.framing import FrameReader, encode_frame
from cluster.ids import ModelName, ReplicaId
from cluster.peers import CALLERS, Identity, Role
from cluster.replica.listener import MAX_STRANGERS, Listener, Stranger
from cluster.router.main import serve
from cluster.tls_socket import TlsSocket
from tests.support.paged_fake import answer
from tests.support.peer_files import peer_files
from tests.support.replicas import replica_spec, running_replica, tiny_directory
from tests.support.router_world import MODEL, Reply, request, run_async


async def _nothing() -> None:
    return None


@asynccontextmanager
async def controller(peers: PeersConfig) -> AsyncIterator[tuple[str, RegionView]]:
    """A controller's two services over a view of the test's own."""
    view = RegionView("local")
    identity = peers.identity(Role.CONTROLLER)
    server = rpc.private_server(identity)
    control_pb2_grpc.add_DirectoryServiceServicer_to_server(Directory(view), server)
    control_pb2_grpc.add_ControlServiceServicer_to_server(Control(view, _nothing), server)
    address = rpc.private_listen(server, "127.0.0.1:0", "controller.listen", identity)
    await server.start()
    try:
        yield address, view
    finally:
        await server.stop(0)


async def verdict(address: str, identity: Identity, method: str, to: Role = Role.CONTROLLER) -> Reason | None:
    """What a private method says to a process of that identity; None if it answers. On a machine under load a private
    connection may break for its pings alone: only what cannot be reached again and again cannot be reached."""
    for _ in range(3):
        if (said := await _ask(address, identity, method, to)) is not Reason.UNREACHABLE:
            break
    return said


async def _ask(address: str, identity: Identity, method: str, to: Role) -> Reason | None:
    async with rpc.private_channel(address, identity, to=to) as channel:
        call = channel.stream_stream(method)(iter([b""]), timeout=30)
        try:
            async for _ in call:
                call.cancel()
                break
        except grpc.aio.AioRpcError as error:
            return rpc.to_service_error(error).reason
        except asyncio.CancelledError:
            pass
    return None


@pytest.mark.model
@run_async
async def test_a_request_passes_every_hop_encrypted(smollm2_dir: Path, tmp_path: Path) -> None:
    peers = peer_files(tmp_path / "peers")
    spec = replica_spec(tiny_directory(tmp_path / "tiny"), tp=2, peers=peers)
    async with controller(peers) as (address, view), running_replica(spec, "--fake", "0.001") as replica:
        entry = control_pb2.DirectoryEntry(
            replica_id=ReplicaId(f"{MODEL}/0"), model=ModelName(MODEL), address=replica.addresses.service, epoch=3
        )
        view.publish([], [entry])
        config = parse_config(
            {
                "models": [{"name": MODEL, "path": str(smollm2_dir)}],
                "router": {"listen": "127.0.0.1:0"},
                "controller": {"listen": address},
                "ledger": {"store": "memory"},
                "peers": peers.model_dump(mode="json"),
            }
        )
        stop, cut = asyncio.Event(), asyncio.Event()
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(config, stop=stop, cut=cut, on_listening=listening.set_result))
        try:
            async with rpc.channel(await listening, link=rpc.Link.PUBLIC) as channel:
                from argosy.v1 import inference_pb2_grpc

                reply = Reply()
                ask = request(token_ids={"ids": range(3, 40)}, max_tokens=30, stop={"ignore_end_of_text": True})
                async for event in inference_pb2_grpc.InferenceServiceStub(channel).Generate(ask, timeout=60):
                    reply.add(event)
            assert reply.token_ids() == answer(list(range(3, 40)), 30, seed=reply.started.seed, choice=0)
        finally:
            stop.set()
            cut.set()
            await serving


@run_async
async def test_a_role_calls_what_is_listed_for_it_and_strangers_nothing(tmp_path: Path) -> None:
    own, foreign = peer_files(tmp_path / "own"), peer_files(tmp_path / "foreign")
    async with controller(own) as (address, _):
        for method, callers in CALLERS.items():
            if "DirectoryService" not in method and "ControlService" not in method:
                continue
            for role in Role:
                is_refused = await verdict(address, own.identity(role), method) is Reason.FORBIDDEN
                assert is_refused is (role not in callers), (method, role)
                assert await verdict(address, foreign.identity(role), method) is Reason.UNREACHABLE
            assert await verdict(address, Identity(Role.ROUTER), method) is Reason.UNREACHABLE, "plain text"
        watch = "/argosy.internal.v1.DirectoryService/WatchReplicas"
        assert await verdict(address, own.identity(Role.ROUTER), watch, Role.ENGINE) is Reason.UNREACHABLE, (
            "a controller does not pass for an engine"
        )


@run_async
async def test_engines_let_in_routers_alone(tmp_path: Path) -> None:
    peers = peer_files(tmp_path / "peers")
    spec = replica_spec(tiny_directory(tmp_path / "tiny"), peers=peers)
    connect = "/argosy.internal.v1.ReplicaService/Connect"
    async with running_replica(spec, ready=False, workers=False) as replica:
        for role in set(Role) - {Role.ROUTER}:
            said = await verdict(replica.addresses.service, peers.identity(role), connect, Role.ENGINE)
            assert said is Reason.FORBIDDEN, role
        router = peers.identity(Role.ROUTER)
        assert await verdict(replica.addresses.service, router, connect, Role.ENGINE) is Reason.INVALID_FIELD
        async with rpc.private_channel(replica.addresses.service, Identity(Role.ROUTER), to=Role.ENGINE) as channel:
            call = replica_pb2_grpc.ReplicaServiceStub(channel).Connect()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE


def _step_channel_says(address: str, identity: Identity | None, name: str = Role.ENGINE.dns_name) -> str:
    """How far a peer comes at a step channel that echoes frames."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            context = identity.client_context() if identity else None
            pipe = TlsSocket(connection, context, name) if context else connection
            pipe.sendall(encode_frame(b"hello"))
            return (FrameReader(pipe).read() or b"closed").decode()
        except OSError as error:
            return type(error).__name__


@run_async
async def test_the_step_channel_knows_workers_and_renews_its_certificate(tmp_path: Path) -> None:
    peers, foreign = peer_files(tmp_path / "own"), peer_files(tmp_path / "foreign")

    async def echo(stranger: Stranger) -> None:
        stranger.admitted()
        stranger.writer.write(await stranger.reader.readexactly(9))
        await stranger.writer.drain()

    listener = Listener(peers.identity(Role.ENGINE), echo)
    address = await listener.start("127.0.0.1")

    async def says(identity: Identity | None, name: str = Role.ENGINE.dns_name) -> str:
        return await asyncio.to_thread(_step_channel_says, address, identity, name)

    try:
        worker = peers.identity(Role.WORKER)
        assert await says(worker) == "hello"
        assert await says(peers.identity(Role.ROUTER)) != "hello", "another role"
        assert await says(foreign.identity(Role.WORKER)) != "hello", "another authority"
        assert await says(None) != "hello", "plain text"
        assert await says(worker, Role.CONTROLLER.dns_name) == "SSLCertVerificationError", "not whom it wanted"
        (tmp_path / "own" / "engine.crt").write_text("half a file")
        assert await says(worker) != "hello", "what cannot be read lets nobody in"
        issue(tmp_path / "own", Role.ENGINE, days=-0.001)
        assert await says(worker) == "SSLCertVerificationError", "expired"
        old = tmp_path / "old"
        (tmp_path / "own").rename(old)
        peer_files(tmp_path / "own")
        assert await says(worker) == "hello", "the whole set was renewed, authority included"
        stale = PeersConfig(certificate=old / "worker.crt", key=old / "worker.key", authority=old / "authority.crt")
        assert await says(stale.identity(Role.WORKER)) != "hello"
    finally:
        listener.close()


@run_async
async def test_half_open_handshakes_are_bounded_and_cost_nobody_else(tmp_path: Path) -> None:
    """T35: strangers that never finish the handshake."""
    peers = peer_files(tmp_path / "own")

    async def echo(stranger: Stranger) -> None:
        stranger.admitted()
        stranger.writer.write(await stranger.reader.readexactly(9))
        await stranger.writer.drain()

    listener = Listener(peers.identity(Role.ENGINE), echo)
    address = await listener.start("127.0.0.1")
    host, _, port = address.rpartition(":")
    strangers = []
    try:
        for _ in range(2 * MAX_STRANGERS):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"\x16\x03\x01")  # the beginning of a handshake
            strangers.append((reader, writer))
        async with asyncio.timeout(30):
            ends = [asyncio.create_task(reader.read()) for reader, _ in strangers]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            assert len(listener._strangers) <= MAX_STRANGERS
            await asyncio.gather(*ends, return_exceptions=True)
            while listener._strangers:
                await asyncio.sleep(0.05)
        assert await asyncio.to_thread(_step_channel_says, address, peers.identity(Role.WORKER)) == "hello"
    finally:
        for _, writer in strangers:
            writer.close()
        listener.close()


@run_async
async def test_private_grpc_takes_up_a_renewed_set_while_it_runs(tmp_path: Path) -> None:
    peers = peer_files(tmp_path / "own")
    status = "/argosy.internal.v1.ControlService/GetStatus"
    async with controller(peers) as (address, _):
        operator = peers.identity(Role.OPERATOR)
        assert await verdict(address, operator, status) is None
        (tmp_path / "own").rename(tmp_path / "old")
        renewed = peer_files(tmp_path / "own")
        assert await verdict(address, renewed.identity(Role.OPERATOR), status) is None
        old = tmp_path / "old"
        stale = PeersConfig(certificate=old / "operator.crt", key=old / "operator.key", authority=old / "authority.crt")
        assert await verdict(address, stale.identity(Role.OPERATOR), status) is Reason.UNREACHABLE


def test_two_threads_send_while_one_reads(tmp_path: Path) -> None:
    """Frames of several threads stay whole although reading and writing share one cipher."""
    peers = peer_files(tmp_path / "own")
    ours, theirs = socket.socketpair()
    context = peers.identity(Role.ENGINE).server_context()
    assert context is not None
    frames = [bytes([writer]) * 5000 for writer in range(4)]
    echoed: list[bytes] = []

    def serve_echo() -> None:
        with context.wrap_socket(theirs, server_side=True) as peer:
            reader = FrameReader(peer)
            for _ in range(400):
                peer.sendall(encode_frame(reader.read() or b""))

    server = threading.Thread(target=serve_echo)
    server.start()
    client = peers.identity(Role.WORKER).client_context()
    assert client is not None
    pipe = TlsSocket(ours, client, Role.ENGINE.dns_name)
    senders = [
        threading.Thread(target=lambda frame=frame: [pipe.sendall(encode_frame(frame)) for _ in range(100)])  # type: ignore[misc]
        for frame in frames
    ]
    for sender in senders:
        sender.start()
    reader = FrameReader(pipe)
    echoed = [reader.read() or b"" for _ in range(400)]
    for thread in [*senders, server]:
        thread.join(30)
    ours.close()
    assert sorted(echoed) == sorted(frames * 100)


def test_plain_private_ports_stay_on_the_loopback_interface(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError, match=r"controller.listen: .*peers\.certificate.*plain: anywhere"):
        PeersConfig().identity(Role.CONTROLLER).check_exposure("0.0.0.0:1", "controller.listen")
    PeersConfig().identity(Role.CONTROLLER).check_exposure("127.0.0.1:1", "controller.listen")
    PeersConfig().identity(Role.CONTROLLER).check_exposure("[::1]:1", "controller.listen")
    PeersConfig(plain="anywhere").identity(Role.CONTROLLER).check_exposure("0.0.0.0:1", "controller.listen")
    assert "neither encrypted" in caplog.text


@run_async
async def test_an_engine_that_others_reach_needs_certificates(tmp_path: Path) -> None:
    from cluster.launch import EngineSpec
    from cluster.replica.actor import EngineActor

    engine = EngineActor(EngineSpec(replica_spec(tiny_directory(tmp_path / "tiny")), host="0.0.0.0"))
    with pytest.raises(ConfigurationError, match="peers"):
        await engine.start()


def test_half_a_section_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="need each other"):
        parse_config({"models": [{"name": "m"}], "peers": {"certificate": "a.crt"}})


def test_every_private_method_is_listed() -> None:
    files = (control_pb2.DESCRIPTOR, quota_pb2.DESCRIPTOR, replica_pb2.DESCRIPTOR)
    services = [service for file in files for service in file.services_by_name.values()]
    served = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert served <= set(CALLERS)


def test_the_command_makes_and_renews_a_set(tmp_path: Path) -> None:
    made = CliRunner().invoke(argosy, ["certificates", str(tmp_path / "peers"), "--days", "7"])
    assert made.exit_code == 0, made.output
    assert f'authority: "{tmp_path / "peers" / "authority.crt"}"' in made.output
    authority = (tmp_path / "peers" / "authority.crt").read_bytes()
    before = (tmp_path / "peers" / "router.crt").read_bytes()
    assert CliRunner().invoke(argosy, ["certificates", str(tmp_path / "peers")]).exit_code == 0
    assert (tmp_path / "peers" / "authority.crt").read_bytes() == authority
    assert (tmp_path / "peers" / "router.crt").read_bytes() != before
    certificate = x509.load_pem_x509_certificate(before)
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=6) < left <= datetime.timedelta(days=7)
    assert all(path.stat().st_mode & 0o77 == 0 for path in (tmp_path / "peers").glob("*.key"))
    assert isinstance(ssl.create_default_context(cadata=authority.decode()), ssl.SSLContext)
