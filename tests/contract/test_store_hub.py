"""`argosy pull ORGANISATION/NAME` over the real hub library, against a hub on loopback that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import safetensors.numpy

from tests.support.checkpoints import TINY_CONFIG, tiny_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "harbour/tiny"
SERVED = ("config.json", "tokenizer.json", "chat_template.jinja", "model-1.safetensors", "model-2.safetensors")
PULL = """
import sys
from pathlib import Path
from model.weights.safety import StoreError
from model.weights.store import pull
try:
    print(pull(sys.argv[1], Path(sys.argv[2]), lambda what, fraction: None))
except StoreError as error:
    sys.exit(f"StoreError: {error}")
"""


class Hub(ThreadingHTTPServer):
    """Files of one repository, and what was asked for. `stalled` is a file that never comes beyond its first half."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        weights = tiny_weights()
        embedding = {"model.embed_tokens.weight": weights.pop("model.embed_tokens.weight")}
        self.files = {
            "config.json": json.dumps(TINY_CONFIG).encode(),
            "tokenizer.json": b"{}",
            "chat_template.jinja": b"{{ messages }}",
            "model-1.safetensors": safetensors.numpy.save(weights),
            "model-2.safetensors": safetensors.numpy.save(embedding),
            "pytorch_model.bin": b"a pickle",
            "README.md": b"# Tiny",
            "onnx/config.json": b"{}",
        }
        self.downloads: list[str] = []
        self.stalled: str | None = None
        self.is_stalling = threading.Event()
        self.resume = threading.Event()

    def info(self) -> bytes:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
        return json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode()

    def tree(self) -> bytes:
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files.items()
        ]
        return json.dumps(entries).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        if path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/main"):
            self.send(self.server.info())
        elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            self.send(self.server.tree())
        elif path.startswith(prefix := f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self.file(path.removeprefix(prefix), with_body=with_body)
        else:
            self.send(b'{"error": "Repository not found"}', status=404)

    def send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def file(self, name: str, *, with_body: bool) -> None:
        hub, data = self.server, self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not with_body:
            return
        hub.downloads.append(name)
        if name == hub.stalled:
            self.wfile.write(data[: len(data) // 2])
            hub.is_stalling.set()
            hub.resume.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


def start_pull(hub: Hub, store: Path, source: str = REPOSITORY) -> subprocess.Popen[str]:
    """In its own process: the hub library reads its environment when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(store.parent / "hf")}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PULL, source, str(store)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pull_from(hub: Hub, store: Path, source: str = REPOSITORY) -> tuple[str, str]:
    """What the pull printed on its output and, if it was refused, on its error output."""
    with start_pull(hub, store, source) as process:
        return process.communicate(timeout=60)


def test_takes_safetensors_and_texts_only(hub: Hub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    target = store / "harbour" / "tiny"
    assert pull_from(hub, store) == (f"{target}\n", "")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {name: hub.files[name] for name in SERVED}
    asked = len(hub.downloads)
    assert pull_from(hub, store) == (f"{target}\n", "")
    assert len(hub.downloads) == asked


def test_refuses_before_any_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files["config.json"] = json.dumps(TINY_CONFIG | {"auto_map": {"AutoModel": "evil.Model"}}).encode()
    _, refusal = pull_from(hub, tmp_path / "store")
    assert "harbour/tiny: config.json has auto_map: the model needs remote code" in refusal
    del hub.files["model-1.safetensors"], hub.files["model-2.safetensors"]
    _, refusal = pull_from(hub, tmp_path / "store")
    assert "harbour/tiny: pytorch_model.bin is a pickle" in refusal
    assert not [name for name in hub.downloads if name.endswith((".safetensors", ".bin"))]
    assert not (tmp_path / "store" / "harbour").exists()


def test_a_killed_download_is_never_visible_and_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    hub.stalled = "model-2.safetensors"
    with start_pull(hub, store) as process:
        partial = store / ".partial" / "harbour--tiny"
        assert hub.is_stalling.wait(60)
        # The hub library notes beside each file that it is whole, after it has moved it into place.
        while sum(path.stat().st_size > 0 for path in partial.rglob("*.metadata")) < len(SERVED) - 1:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    hub.resume.set()
    assert not (store / "harbour").exists()

    hub.stalled = None
    hub.downloads.clear()
    target = store / "harbour" / "tiny"
    assert pull_from(hub, store) == (f"{target}\n", "")
    assert (target / "model-2.safetensors").read_bytes() == hub.files["model-2.safetensors"]
    assert hub.downloads == ["model-2.safetensors"]
    assert not (target / ".cache").exists()


def test_unknown_repository_is_one_line(hub: Hub, tmp_path: Path) -> None:
    _, refusal = pull_from(hub, tmp_path / "store", "harbour/nothing")
    assert refusal.startswith("StoreError: harbour/nothing: the hub did not give it: ")
    assert refusal.count("\n") == 1


def test_hub_that_does_not_answer_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    _, refusal = pull_from(hub, tmp_path / "store")
    assert refusal.startswith("StoreError: harbour/tiny: the hub did not give it: ")
    assert refusal.count("\n") == 1
