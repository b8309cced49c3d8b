"""Works through a batch: many prompts in flight at one router, each answer on the disk before it counts.

Knows the public API and the two files. What the router says may pass is asked again; what is the prompt's own fault
becomes a line that says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from argosy.v1 import inference_pb2 as api
from argosy.v1 import inference_pb2_grpc
from cluster.batch.answers import AnswerFile
from cluster.batch.lines import Answer, Prompt, Refused, answer_record, read_line, refusal_record
from cluster.errors import ConfigurationError, ServiceError
from cluster.rpc import to_service_error

PROMPT_SECONDS = 3600.0
"""Longest that one prompt may take, waiting included."""
RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 10.0
PATIENCE_SECONDS = 900.0
"""Without one answer for so long, there is no point in going on; the lines that are done stay done."""


@dataclass(slots=True)
class Tally:
    """How far a batch is. Times are monotonic seconds."""

    total: int
    """Lines of input that are not empty."""
    resumed: int
    """Of those, lines that an earlier run had done."""
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    """By this run, refused lines included."""
    refused: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def left(self) -> int:
        return self.total - self.resumed - self.done

    def line(self, now: float) -> str:
        """One line for a person: done of total, tokens a second, time left."""
        seconds = max(now - self.began, 1e-9)
        parts = [f"{self.resumed + self.done}/{self.total} lines"]
        if self.refused:
            parts.append(f"{self.refused} refused")
        parts.append(f"{self.completion_tokens / seconds:.1f} tokens/s")
        if self.left and self.done:
            parts.append(f"{_duration(self.left * seconds / self.done)} left")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Batch:
    """What to work through, and how."""

    input: Path
    model: str
    """For lines that name none."""
    concurrency: int
    """Prompts in flight."""


def count_lines(path: Path) -> int:
    """Lines that are not empty.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError as error:
        raise ConfigurationError(f"--batch: {path} cannot be read: {error.strerror}") from None


async def work_through(
    batch: Batch, router: grpc.aio.Channel, answers: AnswerFile, tally: Tally, progress: Callable[[Tally], None]
) -> None:
    """Ask every prompt whose answer is not there yet, and write what comes.

    Raises:
        ConfigurationError: nothing was answered for `PATIENCE_SECONDS`, or the output cannot be written.
    """
    work = _Work(batch, inference_pb2_grpc.InferenceServiceStub(router), answers, tally, progress)  # type: ignore[no-untyped-call]
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(batch.concurrency):
                group.create_task(work.take_turns())
    except* OSError as errors:
        first = errors.exceptions[0]
        raise ConfigurationError(f"--out: cannot be written: {first}; the lines that are there count") from None
    except* ConfigurationError as errors:
        raise errors.exceptions[0] from None


class _Work:
    """What the turns share: the input as far as it is read, and when the last line was done."""

    def __init__(
        self,
        batch: Batch,
        stub: inference_pb2_grpc.InferenceServiceStub,
        answers: AnswerFile,
        tally: Tally,
        progress: Callable[[Tally], None],
    ) -> None:
        self._batch = batch
        self._stub = stub
        self._answers = answers
        self._tally = tally
        self._progress = progress
        self._lines = self._unanswered()
        self._last_done = time.monotonic()

    async def take_turns(self) -> None:
        """Take the next line until there is none."""
        for line in self._lines:
            await self._settle(line)

    def _unanswered(self) -> Iterator[Prompt | Refused]:
        """The lines whose answers are not there yet, read as they are asked for. Shared by all turns."""
        taken: dict[str, int] = {}
        with self._batch.input.open(encoding="utf-8", errors="replace") as lines:
            for number, text in enumerate(lines, 1):
                if text.strip():
                    line = read_line(number, text, taken)
                    if line.key not in self._answers.done:
                        yield line

    async def _settle(self, line: Prompt | Refused) -> None:
        outcome = await self._ask(line) if isinstance(line, Prompt) else line
        if isinstance(outcome, Refused):
            await self._answers.add(refusal_record(outcome))
            self._tally.refused += 1
        else:
            assert isinstance(line, Prompt)
            await self._answers.add(answer_record(line, outcome))
            self._tally.completion_tokens += outcome.finished.usage.completion_tokens
            self._tally.prompt_tokens += outcome.finished.usage.prompt_tokens
        self._tally.done += 1
        self._last_done = time.monotonic()
        self._progress(self._tally)

    async def _ask(self, prompt: Prompt) -> Answer | Refused:
        """The answer, however often it takes; or why there will be none."""
        if not prompt.request.model:
            prompt.request.model = self._batch.model
        wait = RETRY_SECONDS
        while True:
            try:
                return await self._answer(prompt)
            except grpc.aio.AioRpcError as rpc_error:
                error = to_service_error(rpc_error)
            if not error.reason.retryable:
                return _refusal(prompt, error)
            if time.monotonic() - self._last_done > PATIENCE_SECONDS:
                raise ConfigurationError(
                    f"no line was answered for {PATIENCE_SECONDS:.0f} s, last because {error.public_message}; "
                    "the same command goes on from here"
                )
            await asyncio.sleep(max(wait, error.retry_after or 0.0))
            wait = min(2 * wait, LONGEST_RETRY_SECONDS)

    async def _answer(self, prompt: Prompt) -> Answer:
        pieces: list[list[str]] = [[] for _ in range(prompt.request.num_choices or 1)]
        finished = api.Finished()
        model = prompt.request.model
        async for event in self._stub.Generate(prompt.request, timeout=PROMPT_SECONDS):
            if event.HasField("delta"):
                pieces[event.delta.choice].append(event.delta.text)
            elif event.HasField("started"):
                model = event.started.model
            else:
                finished = event.finished
        return Answer(model, ["".join(of_choice) for of_choice in pieces], finished)


def _refusal(prompt: Prompt, error: ServiceError) -> Refused:
    """A refusal by the router: its first violation, in the line's own words."""
    if error.violations:
        first = error.violations[0]
        field = first.field.removeprefix("sampling.").removeprefix("chat.")
        path = f"body.{field}" if prompt.openai else field
        return Refused(prompt.number, prompt.key, path, first.description, prompt.openai)
    return Refused(prompt.number, prompt.key, "", error.public_message, prompt.openai)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
