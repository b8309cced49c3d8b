"""The protos are the manual and the stubs are theirs: linted, fresh, and every element says what it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

from tools import stubs

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptorProto]:
    output = tmp_path_factory.mktemp("descriptors") / "all.binpb"
    sources = sorted(str(path.relative_to(stubs.PROTO)) for path in stubs.PROTO.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{stubs.PROTO}", "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={output}", *sources], check=True)
    files = FileDescriptorSet.FromString(output.read_bytes()).file
    return {file.name: file for file in files}


def test_lint_is_clean() -> None:
    result = subprocess.run([BUF, "lint", "proto"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_committed_stubs_are_what_protoc_writes() -> None:
    assert stubs.stale_stubs() == []


def test_a_stale_stub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(stubs.PROTO, tmp_path / "proto")
    monkeypatch.setattr(stubs, "PROTO", tmp_path / "proto")
    models = tmp_path / "proto" / "argosy" / "v1" / "models.proto"
    models.write_text(models.read_text() + "\n// Nothing.\nmessage Extra {}\n")
    (models.parent / "gone_pb2.py").touch()
    problems = stubs.stale_stubs()
    assert "argosy/v1/models_pb2.py: differs" in problems
    assert "argosy/v1/gone_pb2.py: has no .proto any more" in problems


def test_proto_is_never_a_package() -> None:
    assert not (stubs.PROTO / "__init__.py").exists()


def test_every_element_is_commented(descriptors: dict[str, FileDescriptorProto]) -> None:
    silent = [f"{name}: {element}" for name, file in descriptors.items() for element in _silent_elements(file)]
    assert silent == []


def test_packages_are_folders(descriptors: dict[str, FileDescriptorProto]) -> None:
    for name, file in descriptors.items():
        # Other systems' protocols keep the packages that their clients know.
        assert name.startswith("argosy/compat/") or file.package == str(Path(name).parent).replace("/", ".")
        assert file.syntax == "proto3"


def test_public_api_never_imports_internal(descriptors: dict[str, FileDescriptorProto]) -> None:
    for name, file in descriptors.items():
        if file.package == "argosy.v1":
            assert not [other for other in file.dependency if "internal" in other], name


def test_a_renumbered_field_is_a_breaking_change(tmp_path: Path) -> None:
    """What `make check` compares with the last release tag would be noticed."""
    shutil.copytree(stubs.PROTO, tmp_path / "proto", ignore=shutil.ignore_patterns("*.py", "*.pyi"))
    models = tmp_path / "proto" / "argosy" / "v1" / "models.proto"
    before = models.read_text()
    models.write_text(before.replace(" = 1;", " = 1001;", 1))
    assert models.read_text() != before
    command = [BUF, "breaking", tmp_path / "proto", "--against", stubs.PROTO]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "models.proto" in result.stdout


def _silent_elements(file: FileDescriptorProto) -> list[str]:
    """Names of messages, fields, enums, values, services and methods that no comment stands before or beside."""
    commented = {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }
    return [name for path, name in _elements(file, (), "") if path not in commented]


_CHILDREN = ("message_type", "enum_type", "service", "nested_type", "field", "oneof_decl", "value", "method")


def _elements(parent: Message, path: tuple[int, ...], prefix: str) -> list[tuple[tuple[int, ...], str]]:
    found = []
    for descriptor, children in parent.ListFields():
        if descriptor.name not in _CHILDREN:
            continue
        for index, child in enumerate(children):
            if _is_synthetic(parent, child):
                continue
            name = f"{prefix}{child.name}"
            here = (*path, descriptor.number, index)
            found += [(here, name), *_elements(child, here, f"{name}.")]
    return found


def _is_synthetic(parent: Message, child: Message) -> bool:
    """What protoc adds by itself: entries of maps, and the oneof of an `optional` field."""
    if child.DESCRIPTOR.name == "DescriptorProto":
        return child.options.map_entry
    if child.DESCRIPTOR.name == "OneofDescriptorProto":
        index = list(parent.oneof_decl).index(child)
        return any(field.proto3_optional and field.oneof_index == index for field in parent.field)
    return False
