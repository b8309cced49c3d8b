"""A whole region through its front doors: `argosy up` with a real model cut 2 × 2, asked by gRPC and the CLI."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.json_format import Parse
from google.rpc import error_details_pb2, status_pb2

from argosy.internal.v1 import control_pb2
from argosy.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc
from tests.support.region import ARGOSY, UpRun, marked, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France? Answer in one sentence."
READY = control_pb2.REPLICA_STATE_READY


@pytest.fixture(scope="module")
def region(smollm2_dir: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpRun]:
    """One region for every test here."""
    run = UpRun(tmp_path_factory.mktemp("up"))
    try:
        run.wait_ready()
        yield run
        directory = run.directory
        assert run.stop() == 0, run.text
        assert "Stopped" in run.text
        run.assert_nothing_left()
        assert not directory.exists()
    finally:
        run.kill_all()


@pytest.fixture(scope="module")
def inference(region: UpRun) -> Iterator[inference_pb2_grpc.InferenceServiceStub]:
    with grpc.insecure_channel(region.router) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def argosy(*arguments: object, stdin: str = "", state: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ARGOSY_STATE": str(state)} if state else None
    return subprocess.run(
        [*ARGOSY, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )


def chat_request(text: str, max_tokens: int = 24) -> inference_pb2.GenerateRequest:
    message = inference_pb2.ChatMessage(role=inference_pb2.ROLE_USER, content=text)
    request = inference_pb2.GenerateRequest(
        model=MODEL, chat=inference_pb2.Chat(messages=[message]), max_tokens=max_tokens
    )
    request.sampling.temperature = 0.0
    return request


def tokens_of(inference: inference_pb2_grpc.InferenceServiceStub, text: str) -> list[int]:
    request = chat_request(text, max_tokens=12)
    return [token for event in inference.Generate(request, timeout=100) for token in event.delta.token_ids]


def test_a_client_of_ten_lines_is_answered(inference: inference_pb2_grpc.InferenceServiceStub) -> None:
    events = list(inference.Generate(chat_request(QUESTION), timeout=100))
    assert [event.WhichOneof("event") for event in (events[0], events[-1])] == ["started", "finished"]
    deltas = [event.delta for event in events[1:-1]]
    assert "Paris" in "".join(delta.text for delta in deltas)
    assert [delta.sequence for delta in deltas] == list(range(1, len(deltas) + 1))
    assert events[-1].finished.usage.completion_tokens == sum(len(delta.token_ids) for delta in deltas)
    assert events[-1].finished.choices[0].reason == inference_pb2.FINISH_REASON_STOP


def test_eight_at_once_get_what_each_gets_alone(inference: inference_pb2_grpc.InferenceServiceStub) -> None:
    questions = [f"Count upwards from {number}." for number in range(8)]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: tokens_of(inference, question), questions))
    assert together == [tokens_of(inference, question) for question in questions]
    assert len({tuple(tokens) for tokens in together}) > 4


def test_generate_streams_from_argument_and_from_a_pipe(region: UpRun) -> None:
    options = ["--address", region.router, "--temperature", 0, "--max-tokens", 24]
    asked = argosy("generate", *options, "--stats", QUESTION)
    assert asked.returncode == 0, asked.stderr
    assert "Paris" in asked.stdout
    assert "first token after" in asked.stderr
    piped = argosy("generate", *options, stdin=QUESTION)
    assert piped.stdout == asked.stdout
    raw = argosy("generate", *options, "--raw", "The capital of France is")
    assert "Paris" in raw.stdout
    assert raw.stdout != asked.stdout


def test_chat_remembers_until_told_to_forget(region: UpRun) -> None:
    said = f"{QUESTION}\nAnd of Italy?\n/reset\n{QUESTION}\n/quit\nnever said\n"
    done = argosy("chat", "--address", region.router, "--temperature", 0, "--max-tokens", 24, stdin=said)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.strip().split("\n")
    assert len(answers) == 3
    assert "Rome" in answers[1], "only the conversation says that a capital is meant"
    assert answers[0] == answers[2]


def test_ctrl_c_ends_an_answer_not_the_conversation(region: UpRun) -> None:
    in_a_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    command = [*ARGOSY, "chat", "--address", region.router, "--temperature", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", in_a_terminal, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        screen = chat.stdout

        def read_until(words: str) -> str:
            text = b""
            while words.encode() not in text:
                assert select.select([screen], [], [], 60)[0], text
                text += screen.read(4096)
            return text.decode()

        read_until("> ")
        chat.stdin.write(b"Write a very long story about the sea.\n")
        read_until("The")
        chat.stdin.write(b"\x03")
        assert "(stopped)" in read_until("\n> ")
        chat.stdin.write(b"What is the capital of France?\n")
        assert "Paris" in read_until("\n> ")
        chat.stdin.write(b"/quit\n")
        assert chat.wait(30) == 0


@pytest.mark.parametrize(
    ("fields", "code", "names"),
    [
        ({"model": "nope", "prompt": "x"}, grpc.StatusCode.NOT_FOUND, MODEL),
        ({"prompt": ""}, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": "word " * 4000}, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        ({"prompt": "x", "sampling": {"temperature": -1}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature"),
        ({"prompt": "x", "sampling": {"temperature": "NaN"}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature"),
        ({"prompt": "x", "max_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"prompt": "x", "max_tokens": 10**9}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"token_ids": {"ids": [1, 49152]}}, grpc.StatusCode.INVALID_ARGUMENT, "token_ids"),
        ({"chat": {"messages": [{"content": "x"}]}}, grpc.StatusCode.INVALID_ARGUMENT, "role"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_bad_input_names_the_field(
    inference: inference_pb2_grpc.InferenceServiceStub, fields: dict, code: grpc.StatusCode, names: str
) -> None:
    request = Parse(json.dumps({"model": MODEL, **fields}), inference_pb2.GenerateRequest())
    with pytest.raises(grpc.RpcError) as caught:
        list(inference.Generate(request, timeout=30))
    assert caught.value.code() is code
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    assert names in status.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason


def test_models_are_listed(region: UpRun) -> None:
    with grpc.insecure_channel(region.router) as channel:
        (model,) = (
            models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest(), timeout=10).models
        )
    assert (model.name, model.ready_replicas, model.vocabulary_size) == (MODEL, 1, 49152)
    assert model.has_chat_template


def test_status_names_every_rank(region: UpRun) -> None:
    table = argosy("status", "-f", region.file)
    assert table.returncode == 0, table.stderr
    assert f"{MODEL}/0: ready, epoch 1" in table.stdout
    status = json.loads(argosy("status", "--address", region.controller, "--json").stdout)
    ranks = status["replicas"][0]["ranks"]
    assert [(rank.get("stage", 0), rank.get("tensor_rank", 0)) for rank in ranks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [rank["phase"] for rank in ranks] == ["ready"] * 4
    assert len({rank["pid"] for rank in ranks}) == 4
    assert all(rank["loaded_bytes"] == rank["total_bytes"] for rank in ranks)
    assert {rank["query_heads"] for rank in ranks} == {3, 6}, "9 heads on 2 ranks"


def test_every_port_is_on_the_loopback_interface(region: UpRun) -> None:
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in marked(region.mark)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_ray_admits_nobody_without_the_token(region: UpRun) -> None:
    token = region.directory / "ray-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(region.directory.stat().st_mode) == 0o700
    (gcs,) = [process for process in marked(region.mark) if process.name() == "gcs_server"]
    ports = {c.laddr.port for c in gcs.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    code = (
        "import sys\nfrom ray._raylet import GcsClient\n"
        "try:\n    GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n    sys.exit(3)\n"
    )
    for mode, secret, expected in (("token", token.read_text(), 0), ("token", "0" * 64, 3), ("disabled", "", 3)):
        environment = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": secret}
        done = subprocess.run(
            [sys.executable, "-c", code, f"127.0.0.1:{max(ports)}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == expected, (mode, done.stdout, done.stderr)


def test_one_request_is_followed_over_all_processes(
    region: UpRun, inference: inference_pb2_grpc.InferenceServiceStub
) -> None:
    events = list(inference.Generate(chat_request("Say a word that nobody logs: xylophone."), timeout=100))
    request_id = events[0].started.request_id
    lines: list[dict[str, object]] = []

    def found() -> bool:
        shown = argosy("logs", "--request", request_id, "--json", state=region.state)
        lines[:] = [json.loads(line) for line in shown.stdout.splitlines()]
        return any(line["role"] == "router" for line in lines)

    wait_until(found, 30, "the router's line about the request")
    assert {line["role"] for line in lines} == {"router", "engine"}
    assert {line["request"] for line in lines} == {request_id}
    assert {line["region"] for line in lines} == {"local"}
    everything = argosy("logs", state=region.state).stdout
    assert "role=worker" in everything
    assert "role=controller" in everything
    assert "xylophone" not in everything
    assert f"no line about {'req_0'}" in argosy("logs", "--request", "req_0", state=region.state).stderr


def test_the_controller_lists_every_port_that_prometheus_can_scrape(region: UpRun) -> None:
    (line,) = [
        line
        for line in argosy("logs", "--json", state=region.state).stdout.splitlines()
        if '"controller"' in line and "metrics: " in line
    ]
    address = json.loads(line)["message"].removeprefix("metrics: ")
    with urllib.request.urlopen(f"http://{address}/targets", timeout=20) as response:
        groups = json.load(response)
    assert [group["labels"]["job"] for group in groups] == ["argosy-controller", "argosy-router", "argosy-engine"]
    assert all(group["labels"]["region"] == "local" for group in groups)
    for group in groups:
        with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics", timeout=20) as response:
            text = response.read().decode()
        known = ("argosy_controller_replicas{", "argosy_router_requests_total{", "argosy_rank_peak_flops_per_second{")
        assert any(name in text for name in known)


def test_status_watches_until_every_replica_is_ready(region: UpRun) -> None:
    watched = argosy("status", "--watch", "--address", region.controller)
    assert watched.returncode == 0, watched.stderr
    assert "stage 1 rank 1: ready" in watched.stdout


def test_a_killed_rank_is_named_and_the_replica_returns_at_a_new_epoch(
    region: UpRun, inference: inference_pb2_grpc.InferenceServiceStub
) -> None:
    before = tokens_of(inference, QUESTION)
    rank = region.status().replicas[0].ranks[3]
    os.kill(rank.pid, signal.SIGKILL)
    wait_until(lambda: region.status().replicas[0].epoch == 2, 30, "a new epoch")
    wait_until(lambda: region.status().replicas[0].state == READY, 120, "a rebuilt replica")
    assert rank.pid not in {fresh.pid for fresh in region.status().replicas[0].ranks}
    assert f"stage 1 rank 1 (pid {rank.pid}" in region.text
    wait_until(lambda: tokens_of_or_none(inference) == before, 30, "the same answer")


def tokens_of_or_none(inference: inference_pb2_grpc.InferenceServiceStub) -> list[int] | None:
    try:
        return tokens_of(inference, QUESTION)
    except grpc.RpcError:
        return None


def test_a_killed_controller_comes_back_and_adopts_what_runs(
    region: UpRun, inference: inference_pb2_grpc.InferenceServiceStub
) -> None:
    before = region.status().replicas[0]
    port = int(region.controller.rpartition(":")[2])
    (controller,) = [
        process
        for process in marked(region.mark)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    controller.kill()
    assert tokens_of(inference, QUESTION), "routers and replicas go on without it"
    region.wait_said("it adopts what runs", 30)

    def adopted() -> bool:
        try:
            (replica,) = region.status().replicas
        except grpc.RpcError:
            return False
        return replica.state == READY

    wait_until(adopted, 60, "adoption")
    after = region.status().replicas[0]
    assert after.epoch == before.epoch
    assert [rank.pid for rank in after.ranks] == [rank.pid for rank in before.ranks]
