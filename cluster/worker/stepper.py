"""Runs one step after another: slots → shard → sampled tokens → answer. Knows no sockets and does not import torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from argosy.internal.v1 import replica_pb2, step_pb2
from cluster.config import EngineConfig
from cluster.launch import ReplicaSpec
from cluster.worker.feedback import FeedBack
from cluster.worker.slots import PreparedStep, Slots, has_prompt_tokens
from model.batch import Batch, Int32Array, Sampled, TokenLogprobs
from model.parallel.dims import RankCoordinates


class Runner(Protocol):
    """One rank's part of the model, ready to run; `cluster.worker.bootstrap` makes it."""

    def run(self, batch: Batch) -> Sampled | None:
        """One pass; the tokens on every rank of the last stage, None elsewhere."""
        ...

    def feed_back(self, token_ids: Int32Array) -> None:
        """Last stage to first; only with more than one stage."""
        ...

    def take_feed_back(self, count: int) -> Int32Array:
        """The next step's `count` tokens; only with more than one stage."""
        ...

    @property
    def waited_seconds(self) -> float:
        """Seconds spent waiting for earlier stages, since start."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """What a rank does with tokens, by where it stands."""

    embeds: bool
    samples: bool
    pipelined: bool
    answers: bool

    @classmethod
    def of(cls, replica: ReplicaSpec, coordinates: RankCoordinates) -> Place:
        last = coordinates.stage == replica.dims.pp - 1
        return cls(
            embeds=coordinates.stage == 0,
            samples=last,
            pipelined=replica.dims.pp > 1,
            answers=last and coordinates.tp_rank == 0,
        )


class Stepper:
    """One rank's step loop, without the loop."""

    def __init__(
        self,
        runner: Runner,
        replica: ReplicaSpec,
        coordinates: RankCoordinates,
        monotonic: Callable[[], float] = time.perf_counter,
        on_pass: Callable[[bool, float], None] = lambda has_prompt_tokens, busy_seconds: None,
    ) -> None:
        """`on_pass` hears of each pass whether it held prompt tokens, and its seconds without waits for stages."""
        engine: EngineConfig = replica.engine
        self._place = Place.of(replica, coordinates)
        self._runner = runner
        self._epoch = replica.epoch
        self._monotonic = monotonic
        self._on_pass = on_pass
        self._slots = Slots(
            engine.max_sequences,
            replica.context_length,
            engine.block_size,
            embeds=self._place.embeds,
            samples=self._place.samples,
        )
        takes = self._place.pipelined and self._place.embeds
        self._feedback = FeedBack(self._slots, runner.take_feed_back, replica.dims.pp) if takes else None

    def step(self, message: step_pb2.StepInput) -> step_pb2.StepOutput | None:
        """Run one step; the answer on the output rank, None elsewhere.

        Raises:
            StepError: the step contradicts itself or the slots.
        """
        if self._feedback:
            self._feedback.before(message)
        prepared = self._slots.prepare(message)
        waited = self._runner.waited_seconds
        started = self._monotonic()
        sampled = self._runner.run(prepared.batch)
        seconds = self._monotonic() - started
        busy_seconds = seconds - (self._runner.waited_seconds - waited)
        self._on_pass(has_prompt_tokens(message), busy_seconds)
        if self._feedback:
            self._feedback.after(prepared)
        if sampled is None:
            return None
        if len(prepared.sampled_slots):
            if self._place.pipelined:
                self._runner.feed_back(sampled.token_ids)
            self._slots.record(prepared.sampled_slots, sampled.token_ids)
        if not self._place.answers:
            return None
        return step_pb2.StepOutput(
            step=prepared.step,
            epoch=self._epoch,
            slots=prepared.sampled_slots.astype("<i4", copy=False).tobytes(),
            token_ids=np.asarray(sampled.token_ids).astype("<i4", copy=False).tobytes(),
            logprobs=_logprobs(prepared, sampled),
            seconds=seconds,
            compute_seconds=busy_seconds,
        )


def _logprobs(prepared: PreparedStep, sampled: Sampled) -> list[replica_pb2.TokenLogprobsData]:
    """One entry a row that asked, in row order."""
    wanted: list[TokenLogprobs] = [
        entry
        for row, entry in zip(prepared.batch.sampling, sampled.logprobs, strict=False)
        if row.top_logprobs is not None and entry is not None
    ]
    return [
        replica_pb2.TokenLogprobsData(
            logprob=entry.logprob, top_token_ids=entry.top_token_ids, top_logprobs=entry.top_logprobs
        )
        for entry in wanted
    ]
