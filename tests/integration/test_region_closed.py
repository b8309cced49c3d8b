"""A whole region with mutual TLS, seen by strangers and by its operator: nothing unpickles, books and engines agree."""

from __future__ import annotations

import json
import os
import pickle
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.support.peer_files import peer_files
from tests.support.region import ARGOSY, UpRun, marked

pytestmark = [pytest.mark.ray, pytest.mark.model]


@pytest.fixture(scope="module")
def region(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpRun]:
    folder = tmp_path_factory.mktemp("closed")
    peers = peer_files(folder / "peers").model_dump(mode="json")
    run = UpRun(folder, {"peers": peers, "ledger": {"path": str(folder / "ledger.db")}})
    try:
        run.wait_ready()
        yield run
        assert run.stop() == 0, run.text
        run.assert_nothing_left()
    finally:
        run.kill_all()


def argosy(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*ARGOSY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def listening_ports(region: UpRun) -> dict[int, str]:
    """Every TCP port that a process of the region listens on, and whose it is."""
    return {
        connection.laddr.port: process.name()
        for process in marked(region.mark)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


class Canary:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


def shapes(canary: bytes) -> list[bytes]:
    """The canary as the protocols around would carry it: bare, framed, posted, as HTTP/2 data of a gRPC call."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    grpc_body = b"\x00" + struct.pack(">I", len(canary)) + canary
    data_frame = struct.pack(">I", len(grpc_body))[1:] + b"\x00\x01\x00\x00\x00\x01" + grpc_body
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
    return [
        canary,
        struct.pack("<I", len(canary)) + canary,
        struct.pack(">I", len(canary)) + canary,
        struct.pack("<Q", len(canary)) + canary,
        head % len(canary) + canary,
        preface + data_frame,
    ]


def send(port: int, data: bytes) -> None:
    """Send it and hang up once the other side has said something or a moment has passed."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.settimeout(0.05)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(4096)
    except OSError:
        pass


def test_a_pickle_sent_to_every_port_is_read_by_none(region: UpRun, tmp_path: Path) -> None:
    """T38. The pickle works: in this very process it makes its file."""
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Canary(proof)))
    assert proof.exists()
    ports = listening_ports(region)
    assert len(ports) >= 8, "router, controller, engine, step channel, and Ray's"
    assert any("gcs" in name for name in ports.values())
    assert any("raylet" in name for name in ports.values())
    before = {process.pid for process in marked(region.mark)}
    path = tmp_path / "canary"
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        for data in shapes(pickle.dumps(Canary(path), protocol)):
            for port in ports:
                send(port, data)
    # Ray's own client, with the canary where values go, and no token.
    code = (
        "import os, sys\nfrom ray._raylet import GcsClient\n"
        "try:\n    GcsClient(address=sys.argv[1]).internal_kv_put(b'x', bytes.fromhex(sys.argv[2]), True, None)\n"
        "except Exception as error:\n    sys.exit(3)\n"
    )
    (gcs,) = [port for port, name in ports.items() if "gcs" in name][:1]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", code, f"127.0.0.1:{gcs}", pickle.dumps(Canary(path)).hex()]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 3
    answer = argosy("generate", "--address", region.router, "--max-tokens", "5", "Say yes.")
    assert answer.returncode == 0, answer.stderr
    assert not path.exists()
    assert before <= {process.pid for process in marked(region.mark)}, "nobody died of it"


def test_private_ports_show_strangers_nothing(region: UpRun) -> None:
    """Controller and engine end whoever has no certificate, in the handshake."""
    private = _private_ports(region)
    assert len(private) == 2
    for port in private:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/argosy.internal.v1.ControlService/Shutdown")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert argosy("status", "-f", region.file).returncode == 0
    stranger = argosy("status", "--address", region.controller)
    assert stranger.returncode != 0
    assert "no controller answers" in stranger.stderr


def _private_ports(region: UpRun) -> list[int]:
    """The controller's port, and those of the engine as the operator's certificate gets to see them."""
    status = json.loads(argosy("status", "-f", region.file, "--json").stdout)
    engines = [int(replica["address"].rpartition(":")[2]) for replica in status["replicas"]]
    return [int(region.controller.rpartition(":")[2]), *engines]


def test_books_and_engines_agree_until_somebody_cooks_the_books(region: UpRun, tmp_path: Path) -> None:
    answer = argosy("generate", "--address", region.router, "--max-tokens", "40", "Count to ten.")
    assert answer.returncode == 0, answer.stderr
    ledger = region.file.parent / "ledger.db"
    with sqlite3.connect(ledger) as database:
        end = time.monotonic() + 30
        while database.execute("SELECT COUNT(*) FROM requests WHERE ending IS NULL").fetchone()[0]:
            assert time.monotonic() < end
            time.sleep(0.1)
        counted = tmp_path / "counted.jsonl"
        rows = database.execute("SELECT request_id, completion_tokens, device_seconds FROM requests").fetchall()
        counted.write_text("".join(f'{{"request_id": "{row[0]}", "completion_tokens": {row[1]}}}\n' for row in rows))
        assert all(device_seconds > 0 for _, _, device_seconds in rows)
    database.close()
    fine = argosy("usage", "-f", region.file, "--reconcile", "--clients", counted)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert "engines of smollm2-135m-instruct" in fine.stdout
    with sqlite3.connect(ledger) as database:
        database.execute("UPDATE requests SET completion_tokens = completion_tokens + 1000")
    database.close()
    cooked = argosy("usage", "-f", region.file, "--reconcile", "--clients", counted)
    assert cooked.returncode == 2, cooked.stdout
    assert cooked.stdout.count("1,000") >= 2, "engines and clients both say so"
