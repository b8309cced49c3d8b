"""Lines of a batch: what is read, what is refused and how, what an output file holds after a crash."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.v1 import inference_pb2 as api
from cluster.batch.answers import AnswerFile
from cluster.batch.lines import Answer, Prompt, Refused, answer_record, read_line, record_key, refusal_record
from cluster.batch.run import Tally
from cluster.errors import ConfigurationError


def read(text: str, number: int = 1, taken: dict[str, int] | None = None) -> Prompt | Refused:
    return read_line(number, text, {} if taken is None else taken)


def test_our_own_form_becomes_a_request() -> None:
    line = {"id": "a", "prompt": "Hi", "max_tokens": 5, "temperature": 0, "stop": "x", "n": 2, "logit_bias": {"7": -1}}
    prompt = read(json.dumps(line))
    assert isinstance(prompt, Prompt)
    assert (prompt.key, prompt.request.prompt, prompt.request.max_tokens) == ("a", "Hi", 5)
    assert prompt.request.sampling.HasField("temperature")
    assert list(prompt.request.stop.strings) == ["x"]
    assert prompt.request.num_choices == 2
    assert prompt.request.sampling.logit_bias[7] == -1
    assert prompt.request.priority_class == api.PRIORITY_CLASS_BATCH


def test_openais_form_is_read_and_answered_in_its_own_terms() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 3}
    prompt = read(json.dumps({"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": body}))
    assert isinstance(prompt, Prompt)
    assert [message.role for message in prompt.request.chat.messages] == [api.ROLE_USER]
    assert prompt.request.max_tokens == 3
    finished = api.Finished(choices=[api.ChoiceOutcome(reason=api.FINISH_REASON_LENGTH)])
    finished.usage.completion_tokens = 3
    record = answer_record(prompt, Answer("m", ["Hello"], finished))
    choice = record["response"]["body"]["choices"][0]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}
    assert record_key(record) == "q"


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ('{"prompt": "a"', "", "not JSON"),
        ("[1]", "", "expected an object"),
        ('{"id": "a"}', "", "one of the two"),
        ('{"id": "a", "prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "", "one of the two"),
        ('{"id": "a", "prompt": "a", "temprature": 1}', "temprature", "not permitted"),
        ('{"id": "a", "prompt": "a", "max_tokens": "5"}', "max_tokens", "integer"),
        ('{"id": "a", "prompt": "a", "seed": -1}', "seed", "greater than or equal to 0"),
        ('{"id": "a", "prompt": "a", "logit_bias": {"x": 1}}', "logit_bias", "not a token id"),
        ('{"id": "a", "messages": [{"role": "king", "content": ""}]}', "messages.0.role", "'system'"),
        ('{"id": "line-9", "prompt": "a"}', "id", "choose another"),
        ('{"custom_id": "a", "body": {"prompt": "a", "n": true}}', "body.n", "integer"),
        ('{"custom_id": "a", "url": "/v1/embeddings", "body": {"prompt": "a"}}', "url", "/v1/completions"),
    ],
)
def test_a_bad_line_names_itself_and_the_field(line: str, field: str, words: str) -> None:
    refused = read(line, number=3)
    assert isinstance(refused, Refused)
    assert refused.field == field
    error = refusal_record(refused)["error"]
    assert error["line"] == 3
    assert "line 3" in error["message"]
    assert words in error["message"]


def test_a_second_line_of_the_same_id_is_refused_under_its_own_number() -> None:
    taken: dict[str, int] = {}
    first, second, third = (read('{"id": "a", "prompt": "x"}', number, taken) for number in (1, 2, 3))
    assert isinstance(first, Prompt)
    assert [line.key for line in (first, second, third)] == ["a", "line-2", "line-3"]
    assert isinstance(second, Refused)
    assert "line 1" in second.message


@given(st.text())
def test_any_text_is_a_prompt_or_a_refusal_with_a_key(text: str) -> None:
    assert read(text).key


def test_an_answer_is_on_the_disk_when_add_returns_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    async def write(count: int) -> None:
        with AnswerFile(path) as answers:
            start = len(answers.done)

            async def add(index: int) -> None:
                await answers.add({"id": f"{index}", "choices": []})
                assert f'"id":"{index}"' in path.read_text()

            await asyncio.gather(*(add(index) for index in range(start, start + count)))

    asyncio.run(write(50))
    whole = path.read_bytes()
    assert {record_key(json.loads(line)) for line in whole.splitlines()} == {str(index) for index in range(50)}
    path.write_bytes(whole + b'{"id":"50","choi')
    with AnswerFile(path) as answers:
        assert answers.done == {str(index) for index in range(50)}
    assert path.read_bytes() == whole


@given(cut=st.integers(min_value=0, max_value=200))
def test_wherever_a_crash_cuts_the_file_only_whole_lines_count(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    lines = [json.dumps({"id": f"é{index}"}).encode() + b"\n" for index in range(10)]
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    path.write_bytes(b"".join(lines)[:cut])
    whole = sum(1 for end in range(1, 11) if len(b"".join(lines[:end])) <= cut)
    with AnswerFile(path) as answers:
        assert len(answers.done) == whole
    assert path.read_bytes() == b"".join(lines[:whole])


@pytest.mark.parametrize(("content", "words"), [("hello\n", "line 1 is not"), ('{"id":"a"}\n' * 2, "line 2 repeats")])
def test_a_file_that_is_no_output_is_left_alone(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=words):
        AnswerFile(path)
    assert path.read_text() == content


def test_two_processes_never_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with AnswerFile(path), pytest.raises(ConfigurationError, match="another process"):
        AnswerFile(path)


def test_after_a_failed_write_nothing_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with AnswerFile(tmp_path / "out.jsonl") as answers:

            def full(group: bytes) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(answers, "_append", full)
            with pytest.raises(OSError, match="No space"):
                await answers.add({"id": "a"})
            monkeypatch.undo()
            with pytest.raises(OSError, match="No space"):
                await answers.add({"id": "b"})

    asyncio.run(scenario())


def test_progress_counts_earlier_runs_and_foresees_the_end() -> None:
    tally = Tally(total=100, resumed=40, began=0.0, done=20, completion_tokens=300, refused=1)
    assert tally.line(10.0) == "60/100 lines, 1 refused, 30.0 tokens/s, 20 s left"
    assert Tally(total=5, resumed=5, began=0.0).line(1.0) == "5/5 lines, 0.0 tokens/s"
