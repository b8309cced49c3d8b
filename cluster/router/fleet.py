"""All replicas that this router knows: their connections, loads, and what it has sent them since they last reported.

Turns that into the plain numbers `choose_replica` decides on. Knows no clients and no continuation.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from argosy.internal.v1 import control_pb2, replica_pb2
from cluster.clock import Clock
from cluster.ids import Epoch, ModelName, ReplicaId, RouterId
from cluster.protocol import DEAD_AFTER_SECONDS
from cluster.router.attempt import ReplicaAddress
from cluster.router.choose import Candidate, StepCosts, choose_replica
from cluster.router.dispatch import STALL_FACTOR, Dial, ReplicaConnection
from cluster.router.prefixes import PrefixIndex

DEFAULT_COSTS = StepCosts(0.02, 1e-3, 1e-8, 0.03, 1e-3, 1e-7)
"""Of a replica that has not told its own: only their proportions matter, and all unknown replicas share them."""
DEFAULT_STALL_SECONDS = 60.0
"""Longest step of a replica that has not told its coefficients."""
FIRST_ANSWER_TOKENS = 200.0
"""Expected length of an answer before the first one has ended."""
ANSWER_WEIGHT = 0.05
"""Share of each answer's length in the running mean."""
DEFAULT_BLOCKS = 4096
"""Prefix blocks remembered for a replica that has not reported its own number."""

Attempted = tuple[ReplicaId, Epoch]


@dataclass(slots=True)
class Replica:
    """One epoch of one replica."""

    connection: ReplicaConnection
    task: asyncio.Task[None]
    load: replica_pb2.Load
    costs: StepCosts | None
    prefixes: PrefixIndex
    block_size: int
    batch_tokens: int
    is_listed: bool = True
    """The directory offers it. One that is not finishes what it has."""
    sent_prefill_tokens: int = 0
    sent_choices: int = 0
    _candidate: Candidate | None = None

    @property
    def attempted(self) -> Attempted:
        return self.connection.target.replica_id, self.connection.target.epoch

    def report(self, load: replica_pb2.Load) -> None:
        """A newer load: it contains what was sent before."""
        self.load = load
        self.sent_prefill_tokens = self.sent_choices = 0
        self._candidate = None

    def sent(self, prefill_tokens: int, choices: int, keys: Sequence[bytes]) -> None:
        """A request was sent; the next report will contain it."""
        self.sent_prefill_tokens += prefill_tokens
        self.sent_choices += choices
        self.prefixes.promise(keys)
        self._candidate = None

    def cached_tokens(self, keys: Sequence[bytes]) -> int:
        """Leading tokens of a prompt that its prefix cache probably holds; `keys` are of the prompt's blocks."""
        return self.prefixes.cached_blocks(keys) * self.block_size

    def candidate(self) -> Candidate:
        """What the choice reads; eligible if a request can be sent now."""
        if self._candidate is None or self._candidate.eligible != self.is_eligible:
            self._candidate = self._make_candidate()
        return self._candidate

    @property
    def is_eligible(self) -> bool:
        return self.is_listed and self.connection.is_live

    def stall_seconds(self) -> float:
        """Longest time that a step of a replica may take that does not predict its steps itself: five full ones."""
        if self.costs is None:
            return DEFAULT_STALL_SECONDS
        costs, load = self.costs, self.load
        prefill = costs.prefill_base + self.batch_tokens * costs.prefill_per_token
        prefill += self.batch_tokens * load.context_tokens * costs.prefill_per_token_context
        decode = costs.decode_base + load.running * costs.decode_per_sequence
        decode += load.context_tokens * costs.decode_per_context_token
        return max(DEAD_AFTER_SECONDS, STALL_FACTOR * (prefill + decode))

    def _make_candidate(self) -> Candidate:
        load = self.load
        return Candidate(
            eligible=self.is_eligible,
            rtt=self.connection.rtt,
            costs=self.costs or DEFAULT_COSTS,
            batch_tokens=self.batch_tokens,
            running=load.running + self.sent_choices,
            context_tokens=load.context_tokens,
            pending_prefill_tokens=load.pending_prefill_tokens + self.sent_prefill_tokens,
            prefill_share=load.prefill_share,
            free_tokens=(load.total_blocks - load.used_blocks) * self.block_size,
            used_tokens=load.used_blocks * self.block_size,
        )


@dataclass(slots=True)
class ModelTraffic:
    """What the fleet knows of one model."""

    block_size: int
    batch_tokens: int
    answer_tokens: float = FIRST_ANSWER_TOKENS
    on_trial: object | None = None
    """The suspect that runs now."""
    replicas: dict[ReplicaId, Replica] = field(default_factory=dict)


class Fleet:
    """Replicas by model."""

    def __init__(
        self,
        router_id: RouterId,
        clock: Clock,
        rng: random.Random,
        models: dict[ModelName, ModelTraffic],
        dial: Dial | None = None,
    ) -> None:
        """`dial`: how replicas are reached; over gRPC by default."""
        self._router_id = router_id
        self._clock = clock
        self._rng = rng
        self._models = models
        self._dial = dial
        self._retired: list[Replica] = []

    def update(self, directory: control_pb2.WatchReplicasResponse) -> None:
        """Take over a directory: connect to what is new, let go what is gone."""
        listed = {(ModelName(entry.model), ReplicaId(entry.replica_id)): entry for entry in directory.replicas}
        for name, model in self._models.items():
            for replica_id, replica in model.replicas.items():
                replica.is_listed = (name, replica_id) in listed
        for (name, replica_id), entry in listed.items():
            if name in self._models:
                self._update_replica(self._models[name], replica_id, entry)
        self._reap()

    def num_ready(self, name: ModelName) -> int:
        """Replicas that a request can be sent to now."""
        return sum(replica.is_eligible for replica in self._models[name].replicas.values())

    def choose(
        self,
        name: ModelName,
        prompt_tokens: int,
        max_tokens: int,
        keys: Sequence[bytes],
        exclude: Collection[Attempted],
    ) -> Replica | None:
        """The replica to send a request to; None if none can take it.

        Args:
            prompt_tokens: all tokens to compute, those emitted elsewhere included.
            max_tokens: most tokens of its answer.
            keys: of the prompt's blocks.
            exclude: replicas (and epochs) where it failed.
        """
        model = self._models[name]
        replicas = [replica for replica in model.replicas.values() if replica.attempted not in exclude]
        candidates = [replica.candidate() for replica in replicas]
        cached = [replica.cached_tokens(keys) for replica in replicas]
        expected = min(model.answer_tokens, max_tokens)
        index = choose_replica(prompt_tokens, expected, candidates, cached, self._rng)
        if index is None:
            return None
        return replicas[index]

    def begin_trial(self, name: ModelName, suspect: object) -> bool:
        """Let a request run that may be what kills replicas; False while another one does.

        One after the other, so that whoever is there when the next replica dies is the one.
        """
        model = self._models[name]
        if model.on_trial is None:
            model.on_trial = suspect
        return model.on_trial is suspect

    def end_trial(self, name: ModelName, suspect: object) -> None:
        """It is cleared, refused or gone; others are ignored."""
        if self._models[name].on_trial is suspect:
            self._models[name].on_trial = None

    def observe_answer(self, name: ModelName, tokens: int) -> None:
        """An answer has ended: answers to come are expected to be like it."""
        model = self._models[name]
        model.answer_tokens += ANSWER_WEIGHT * (tokens - model.answer_tokens)

    async def close(self) -> None:
        """Let every replica go."""
        replicas = [replica for model in self._models.values() for replica in model.replicas.values()]
        tasks = [replica.task for replica in replicas + self._retired]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _update_replica(self, model: ModelTraffic, replica_id: ReplicaId, entry: control_pb2.DirectoryEntry) -> None:
        replica = model.replicas.get(replica_id)
        target = ReplicaAddress(replica_id, entry.address, Epoch(entry.epoch))
        if replica is not None and replica.connection.target != target:
            # Rebuilt or moved: whatever the old epoch still says is not listened to.
            self._retire(model, replica)
            replica = None
        if replica is None:
            model.replicas[replica_id] = self._connect(model, target, entry)
            return
        replica.costs = _costs(entry.coefficients)
        if not replica.connection.is_live:
            replica.report(entry.load)

    def _connect(self, model: ModelTraffic, target: ReplicaAddress, entry: control_pb2.DirectoryEntry) -> Replica:
        connection = ReplicaConnection(
            target,
            self._router_id,
            self._clock,
            on_load=lambda load: replica.report(load),
            stall_seconds=lambda: replica.stall_seconds(),
            dial=self._dial,
        )
        replica = Replica(
            connection=connection,
            task=asyncio.create_task(connection.run()),
            load=entry.load,
            costs=_costs(entry.coefficients),
            prefixes=PrefixIndex(entry.load.total_blocks or DEFAULT_BLOCKS),
            block_size=model.block_size,
            batch_tokens=model.batch_tokens,
        )
        return replica

    def _retire(self, model: ModelTraffic, replica: Replica) -> None:
        del model.replicas[replica.connection.target.replica_id]
        replica.task.cancel()
        self._retired.append(replica)

    def _reap(self) -> None:
        """Retire what the directory no longer offers once its last request has ended."""
        for model in self._models.values():
            for replica in list(model.replicas.values()):
                if not replica.is_listed and replica.connection.num_attempts == 0:
                    self._retire(model, replica)
        self._retired = [replica for replica in self._retired if not replica.task.done()]


def _costs(message: control_pb2.StepCoefficients) -> StepCosts | None:
    """None if the replica has none yet, or they are no numbers."""
    values = (
        message.prefill_base,
        message.prefill_per_token,
        message.prefill_per_token_context,
        message.decode_base,
        message.decode_per_sequence,
        message.decode_per_context_token,
    )
    if not any(values) or not all(math.isfinite(value) and value >= 0 for value in values):
        return None
    return StepCosts(*values)
