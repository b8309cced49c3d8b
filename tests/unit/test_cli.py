"""The command line without a region: help that teaches, mistakes in one line, output made for people and for pipes."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from rich.console import Console

from argosy.internal.v1 import control_pb2
from argosy.v1 import inference_pb2
from cluster.cli import SUBCOMMANDS
from cluster.cli.client import AskOptions, user_message
from cluster.cli.generate import response_format
from cluster.cli.tables import span, status_view
from cluster.cli.terminal import ProgressLine, human_bytes, printable
from tests.support.region import MARK, marked, wait_until

ARGOSY = [sys.executable, "-m", "cluster.cli"]
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def argosy(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ARGOSY, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_teaches_by_example(name: str) -> None:
    done = argosy(name, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"argosy {name}" in done.stdout
    assert SUBCOMMANDS[name].split(";")[0].rstrip(".") in done.stdout.replace("\n", " ").replace("  ", " ")


def test_help_waits_for_nothing_heavy() -> None:
    code = "import sys, cluster.cli as c; c.argosy(['-h'], standalone_mode=False); print(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {"ray", "torch", "grpc", "rich"}.isdisjoint(done.stdout.splitlines()[-1].split())


def test_an_unknown_command_names_the_known_ones() -> None:
    done = argosy("serve")
    assert done.returncode == 2
    assert "no command 'serve'" in done.stderr
    assert "generate" in done.stderr


def write_checkpoint(directory: Path, *, truncate: bool = False) -> None:
    """A whole checkpoint of zeros; `truncate` cuts the last bytes off."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(SHAPE))
    (directory / "tokenizer.json").write_text("{}")
    shapes = {"model.embed_tokens.weight": [32, 16], "lm_head.weight": [32, 16], "model.norm.weight": [16]}
    for layer in range(2):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            shapes[f"model.layers.{layer}.{name}.weight"] = [16, 16]
        for name in ("self_attn.k_proj", "self_attn.v_proj"):
            shapes[f"model.layers.{layer}.{name}.weight"] = [8, 16]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = [16]
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    data = struct.pack("<Q", len(encoded)) + encoded + bytes(end)
    (directory / "model.safetensors").write_bytes(data[:-5] if truncate else data)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "store" / "m")
    return tmp_path


def up(home: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    file = home / "argosy.yaml"
    base = {"model_store": str(home / "store"), "models": [{"name": "m"}], **changes}
    if "router" not in base:
        base |= {"router": {"listen": "127.0.0.1:0"}, "controller": {"listen": "127.0.0.1:0"}}
    file.write_text(json.dumps(base))
    return argosy("up", "-f", file)


def assert_one_line(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("argosy: ")
    for words in says:
        assert words in lines[0]


def test_up_refuses_a_wrong_key(home: Path) -> None:
    assert_one_line(up(home, modles=[]), "unknown key 'modles'", "known keys here: region, location, models, regions")


def test_up_refuses_an_impossible_cut(home: Path) -> None:
    done = up(home, models=[{"name": "m", "pipeline_parallel": 3}])
    assert_one_line(done, "pipeline_parallel 3 is impossible", "2")


def test_up_refuses_missing_weights(home: Path) -> None:
    (home / "store" / "m" / "model.safetensors").unlink()
    assert_one_line(up(home), "model m", "safetensors")


def test_up_refuses_truncated_weights(home: Path) -> None:
    write_checkpoint(home / "store" / "t", truncate=True)
    assert_one_line(up(home, models=[{"name": "t"}]), "model t", "model.safetensors")


def test_up_refuses_a_model_that_was_never_pulled(home: Path) -> None:
    assert_one_line(up(home, models=[{"name": "absent"}]), "run `argosy pull absent`")


def test_pull_takes_a_model_or_a_file(home: Path) -> None:
    write_checkpoint(home / "elsewhere" / "mine")
    file = home / "argosy.yaml"
    models = [{"name": "m"}, {"name": "mine", "path": str(home / "elsewhere" / "mine")}]
    file.write_text(json.dumps({"model_store": str(home / "store"), "models": models}))
    unknown = argosy("pull", "-f", file)
    assert_one_line(unknown, "'m': no such directory, and not a known model")
    file.write_text(json.dumps({"model_store": str(home / "store"), "models": models[1:]}))
    assert argosy("pull", "-f", file).returncode == 0, "the one with a path is left alone"
    both, neither = argosy("pull", "m", "-f", file), argosy("pull")
    assert both.returncode == neither.returncode == 2
    assert "name a model, or a region's file with -f" in both.stderr


def test_up_refuses_a_port_in_use_and_says_by_whom(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = up(home, router={"listen": f"127.0.0.1:{port}"})
    assert_one_line(done, f"router.listen: port {port}", "in use", f"pid {os.getpid()}", "another port")


def test_up_refuses_one_port_for_two_things(home: Path) -> None:
    address = {"listen": "127.0.0.1:50999"}
    assert_one_line(up(home, router=address, controller=address), "controller.listen", "also router.listen")


def test_up_refuses_an_address_of_another_machine(home: Path) -> None:
    assert_one_line(up(home, router={"listen": "192.0.2.77:50051"}), "router.listen", "192.0.2.77")


@pytest.mark.parametrize(
    ("address", "says"), [("127.0.0.1:1", "nothing answers at"), ("nowhere", "neither `local` nor")]
)
def test_up_refuses_a_ray_cluster_that_is_not_there(home: Path, address: str, says: str) -> None:
    assert_one_line(up(home, ray={"address": address}), "ray.address", says)


def test_up_keeps_nothing_of_a_ray_that_ends_with_it(home: Path) -> None:
    file = home / "argosy.yaml"
    file.write_text(json.dumps({"model_store": str(home / "store"), "models": [{"name": "m"}]}))
    assert_one_line(argosy("up", "-f", file, "--keep"), "ray.address: `local` ends with this command", "running head")


def test_a_router_takes_another_controller_only_with_a_port(home: Path) -> None:
    file = home / "argosy.yaml"
    file.write_text(json.dumps({"model_store": str(home / "store"), "models": [{"name": "m"}]}))
    done = argosy("router", "-f", file, "--controller", "controller")
    assert_one_line(done, "controller.listen: 'controller' is not host:port")


def test_up_check_prints_the_plan_and_starts_nothing(home: Path) -> None:
    file = home / "argosy.yaml"
    file.write_text(json.dumps({"model_store": str(home / "store"), "models": [{"name": "m", "pipeline_parallel": 2}]}))
    done = argosy("up", "-f", file, "--check")
    assert done.returncode == 0, done.stderr
    assert "m/0: tensor 1 × pipeline 2, float32 on cpu" in done.stdout
    assert "\x1b" not in done.stdout, "no colours on a pipe"


@pytest.mark.parametrize("command", [["generate", "hello"], ["chat"], ["status"], ["health"]])
def test_nobody_there_is_one_line(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    done = argosy(*command, "--address", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert "argosy up" in done.stderr
    assert "Traceback" not in done.stderr


def test_health_is_an_exit_status() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set("up", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("down", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        up, down, unknown = (argosy("health", "--address", address, "--service", name) for name in ("up", "down", "x"))
    finally:
        server.stop(None)
    assert (up.returncode, up.stdout) == (0, "up: SERVING\n")
    assert (down.returncode, down.stdout) == (1, "down: NOT_SERVING\n")
    assert_one_line(unknown, f"{address} knows no service 'x'")


def test_a_router_told_to_end_with_its_parent_does(home: Path) -> None:
    file = home / "argosy.yaml"
    file.write_text(json.dumps({"models": [{"name": "m"}], "model_store": str(home / "store")}))
    # Python waits in the parent's place: the router starts only once its standard input is open.
    parent = subprocess.Popen([*ARGOSY, "router", "--exit-with-parent", "-f", str(file)], stdin=subprocess.PIPE)
    assert parent.stdin is not None
    parent.stdin.close()
    assert parent.wait(timeout=30) is not None


def test_only_what_was_asked_for_is_sent() -> None:
    bare = AskOptions().request("m", "hello")
    assert not bare.HasField("max_tokens")
    assert not bare.HasField("sampling")
    full = AskOptions(max_tokens=0, temperature=0.0, seed=7, stop=("x",)).request(
        "m", inference_pb2.Chat(messages=[user_message("hi")])
    )
    assert (full.max_tokens, full.sampling.temperature, full.sampling.seed) == (0, 0.0, 7)
    assert full.sampling.HasField("temperature")
    assert not full.sampling.HasField("top_p")
    assert list(full.stop.strings) == ["x"]
    assert full.chat.messages[0].role == inference_pb2.ROLE_USER


def test_the_shape_of_an_answer_is_read_from_a_file_or_an_option() -> None:
    assert response_format(None, None, None) is None
    assert response_format(io.StringIO("{}"), None, None) == inference_pb2.ResponseFormat(json_schema="{}")
    assert response_format(None, "a+", None) == inference_pb2.ResponseFormat(regex="a+")
    shape = response_format(None, None, io.StringIO('start: "a"'))
    assert AskOptions(response_format=shape).request("m", "x").response_format.grammar == 'start: "a"'
    with pytest.raises(click.UsageError, match="exclude"):
        response_format(io.StringIO("{}"), "a+", None)


def test_a_models_words_cannot_drive_the_terminal() -> None:
    assert printable("red \x1b[31m\x07 text\r\n\té漢🙂") == "red [31m text\n\té漢🙂"


def test_progress_on_a_pipe_is_a_line_a_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line.report("waiting for [another] pull", None)
    for percent in range(0, 101, 5):
        line.report("downloading", percent / 100)
    line.close()
    tenths = [f"downloading: {percent} %" for percent in range(0, 101, 10)]
    assert capsys.readouterr().err.splitlines() == ["waiting for [another] pull", *tenths]


def test_sizes_and_ranges_read_well() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1024, 202_752_000, 3 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "193 MiB",
        "3.0 TiB",
    ]
    assert [span(0, 15), span(3, 4), span(2, 2)] == ["0–14", "3", "–"]


def test_status_shows_states_ranks_progress_and_reasons() -> None:
    ranks = [
        control_pb2.RankStatus(stage=0, tensor_rank=r, phase="loading", loaded_bytes=1024 * r, total_bytes=2048, pid=9)
        for r in range(2)
    ]
    replica = control_pb2.ReplicaStatus(
        replica_id="m/0", state=control_pb2.REPLICA_STATE_FAILED, epoch=3, reason="rank lost", ranks=ranks
    )
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(status_view([replica]))
    text = console.export_text()
    for words in ("m/0", "failed, epoch 3", "loading", "2.0 KiB", "rank lost"):
        assert words in text


BREEDER = """
import os, time
for _ in range(500):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    os.wait()
    time.sleep(0.02)
"""
"""Starts orphan after orphan, as a supervisor in trouble might."""


def test_a_second_signal_ends_all_descendants_at_once(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "from cluster.cli.processes import StopRequest, adopt_orphans\n"
        "stop = StopRequest(); stop.install(); adopt_orphans()\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"
        "while True: time.sleep(0.05)\n"
    )
    mark = str(tmp_path)
    program = subprocess.Popen([sys.executable, "-c", code, BREEDER], env={**os.environ, MARK: mark})
    try:
        wait_until(lambda: len(marked(mark)) > 8, 30, "some orphans")
        program.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert program.poll() is None, "the first one only asks"
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=20) == 130
        assert marked(mark) == []
    finally:
        for process in marked(mark):
            process.kill()
        program.wait(10)
