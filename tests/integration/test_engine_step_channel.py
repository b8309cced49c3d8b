"""An engine and one worker that is played by hand: what comes too late, out of turn or from another epoch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.replicas import Replica, replica_spec, running_replica, tiny_directory
from support.router_stream import RouterStream, router_stream, spec_of

from argosy.internal.v1 import control_pb2, replica_pb2, step_pb2
from cluster.framing import encode_frame, read_frame


@dataclass
class HandWorker:
    """The only rank of a replica."""

    epoch: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, **message: object) -> None:
        self.writer.write(encode_frame(step_pb2.WorkerMessage(**message).SerializeToString()))

    async def next_step(self) -> step_pb2.StepInput:
        payload = await read_frame(self.reader)
        assert payload is not None
        return step_pb2.EngineMessage.FromString(payload).step

    def answer(self, asked: step_pb2.StepInput, token: int, **changes: object) -> None:
        slots = np.frombuffer(asked.row_slots, "<i4")[np.frombuffer(asked.row_samples, np.uint8) == 1]
        fields = {
            "step": asked.step,
            "epoch": self.epoch,
            "slots": slots.tobytes(),
            "token_ids": np.full(len(slots), token, "<i4").tobytes(),
            "seconds": 0.001,
        }
        self.say(output=step_pb2.StepOutput(**{**fields, **changes}))


Scenario = Callable[[Replica, HandWorker, RouterStream], Awaitable[None]]


def run(tmp_path: Path, scenario: Scenario) -> None:
    spec = replica_spec(tiny_directory(tmp_path / "tiny"))

    async def main() -> None:
        async with asyncio.timeout(30), running_replica(spec, ready=False, workers=False) as replica:
            host, port = replica.addresses.step_channel.split(":")
            worker = HandWorker(spec.epoch, *await asyncio.open_connection(host, int(port)))
            with contextlib.closing(worker.writer):
                worker.say(hello=step_pb2.WorkerHello(secret=spec.secret, epoch=spec.epoch, pid=1, node="here"))
                worker.say(report=step_pb2.WorkerReport(phase="ready"))
                await replica.wait_for(control_pb2.REPLICA_STATE_READY)
                async with router_stream(replica.addresses.service) as router:
                    await scenario(replica, worker, router)

    asyncio.run(main())


def test_what_an_older_epoch_says_is_dropped(tmp_path: Path) -> None:
    async def scenario(replica: Replica, worker: HandWorker, router: RouterStream) -> None:
        _, got = await router.submit(spec_of([1, 2], 1))
        step = await worker.next_step()
        worker.answer(step, 66, epoch=worker.epoch - 1)
        worker.answer(step, 77)
        await got.over()
        assert got.tokens[0] == [77]

    run(tmp_path, scenario)


def test_at_most_one_step_more_than_stages_is_in_flight(tmp_path: Path) -> None:
    async def scenario(replica: Replica, worker: HandWorker, router: RouterStream) -> None:
        _, got = await router.submit(spec_of([1, 2], 10))
        first, second = await worker.next_step(), await worker.next_step()
        waiting = asyncio.create_task(worker.next_step())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert np.frombuffer(second.token_ids, "<i4").tolist() == [-1]
        worker.answer(first, 5)
        worker.answer(second, 6)
        await waiting
        await got.has(2)
        assert got.tokens[0] == [5, 6]

    run(tmp_path, scenario)


def test_an_answer_out_of_turn_ends_the_epoch(tmp_path: Path) -> None:
    async def scenario(replica: Replica, worker: HandWorker, router: RouterStream) -> None:
        _, got = await router.submit(spec_of([1, 2], 10))
        step = await worker.next_step()
        worker.answer(step, 5, step=step.step + 1)
        await got.over()
        assert got.ends == {0: replica_pb2.END_REASON_ERROR}
        assert got.tokens.get(0, []) == []
        assert "answered out of turn" in (await replica.status()).reason
        assert await worker.reader.read() is not None

    run(tmp_path, scenario)


def test_tokens_for_other_slots_than_planned_end_the_epoch(tmp_path: Path) -> None:
    async def scenario(replica: Replica, worker: HandWorker, router: RouterStream) -> None:
        _, got = await router.submit(spec_of([1, 2], 10))
        step = await worker.next_step()
        worker.answer(step, 5, slots=np.array([9], "<i4").tobytes())
        await got.over()
        assert got.ends == {0: replica_pb2.END_REASON_ERROR}
        assert "slots" in (await replica.status()).reason

    run(tmp_path, scenario)


def test_a_cancelled_request_leaves_the_batch(tmp_path: Path) -> None:
    async def scenario(replica: Replica, worker: HandWorker, router: RouterStream) -> None:
        stream_id, _ = await router.submit(spec_of([1, 2], 10))
        first, second = await worker.next_step(), await worker.next_step()
        await router.cancel(stream_id)
        await asyncio.sleep(0.1)
        worker.answer(first, 5)
        worker.answer(second, 6)
        _, got = await router.submit(spec_of([3], 1))
        step = await worker.next_step()
        worker.answer(step, 7)
        await got.over()
        assert got.tokens[0] == [7]
        assert len(step.closed_slots) == 4
        assert not router.answers[stream_id][0].tokens

    run(tmp_path, scenario)
