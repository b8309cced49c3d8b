"""All replicas of all regions that this router knows, by model: who is there, and who should take a request.

Knows no clients and no continuation; `cluster.router.choose` decides, this gathers what it decides on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from argosy.internal.v1 import control_pb2
from cluster.clock import Clock
from cluster.ids import Epoch, ModelName, RegionId, ReplicaId, RouterId
from cluster.router.attempt import ReplicaAddress
from cluster.router.choose import Candidate, choose_replica
from cluster.router.dial import Dial, dial_grpc
from cluster.router.dispatch import ReplicaConnection
from cluster.router.distance import at_distance
from cluster.router.prefixes import PrefixIndex
from cluster.router.regions import Region, may_serve
from cluster.router.replica import Replica, costs_of
from cluster.router.round_trip import RoundTrip
from cluster.router.shedding import soonest_first_token
from cluster.router.shortlist import MOST_COMPARED, shortlist

FIRST_ANSWER_TOKENS = 200.0
"""Expected length of an answer before the first one has ended."""
ANSWER_WEIGHT = 0.05
"""Share of each answer's length in the running mean."""

ReplicaKey = tuple[RegionId, ReplicaId]
"""Regions number their replicas alike."""
UNKNOWN = Region(RegionId(""), ())


class Choice(NamedTuple):
    """Where a request should go."""

    replica: Replica
    cached_tokens: int
    """Of its prompt, as far as known there."""


@dataclass(slots=True)
class ModelTraffic:
    """What the fleet knows of one model."""

    block_size: int
    batch_tokens: int
    regions: frozenset[RegionId] = frozenset()
    """Whose replicas may serve it; empty: all."""
    answer_tokens: float = FIRST_ANSWER_TOKENS
    replicas: dict[ReplicaKey, Replica] = field(default_factory=dict)
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)


class Fleet:
    """Replicas by model."""

    def __init__(
        self,
        router_id: RouterId,
        clock: Clock,
        rng: random.Random,
        models: dict[ModelName, ModelTraffic],
        dial: Dial = dial_grpc,
        regions: Sequence[Region] = (),
    ) -> None:
        """
        Args:
            dial: how replicas are reached.
            regions: what is configured of them.
        """
        self._router_id = router_id
        self._clock = clock
        self._rng = rng
        self._models = models
        self._dial = dial
        self._regions: Mapping[RegionId, Region] = {region.name: region for region in regions}
        self._retired: set[asyncio.Task[None]] = set()

    def update(self, directory: control_pb2.WatchReplicasResponse) -> None:
        """Take over a region's directory: connect to what is new, let go what is gone."""
        region = RegionId(directory.region)
        listed = {(ModelName(entry.model), ReplicaId(entry.replica_id)): entry for entry in directory.replicas}
        for name, model in self._models.items():
            for (its_region, replica_id), replica in model.replicas.items():
                if its_region == region:
                    replica.list(is_listed=(name, replica_id) in listed)
        for (name, replica_id), entry in listed.items():
            if name in self._models:
                self._update_replica(self._models[name], (region, replica_id), entry)
        self._reap()

    def num_ready(self, name: ModelName) -> int:
        """Replicas that a request can be sent to now."""
        return sum(replica.is_eligible for replica in self._models[name].replicas.values())

    def choose(
        self,
        name: ModelName,
        prompt_tokens: int,
        max_tokens: int,
        blocks: Sequence[int],
        exclude: Collection[ReplicaAddress],
        regions: Collection[str] = (),
    ) -> Choice | None:
        """The replica to send a request to; None if none can take it.

        Args:
            prompt_tokens: all tokens to compute, those emitted elsewhere included.
            max_tokens: most tokens of its answer.
            blocks: names of the prompt's blocks.
            exclude: replicas (and epochs) where it failed.
            regions: that may serve it; empty: all.
        """
        model = self._models[name]
        replicas, candidates, cached = self._pool(model, blocks, exclude, regions)
        if len(replicas) > MOST_COMPARED:
            kept = shortlist(candidates, cached, self._rng)
            replicas = [replicas[index] for index in kept]
            candidates = [candidates[index] for index in kept]
            cached = [cached[index] for index in kept]
        expected = min(model.answer_tokens, max_tokens)
        index = choose_replica(prompt_tokens, expected, candidates, cached, self._rng)
        return None if index is None else Choice(replicas[index], cached[index])

    def first_token_seconds(
        self, name: ModelName, prompt_tokens: int, max_tokens: int, blocks: Sequence[int], regions: Collection[str]
    ) -> float | None:
        """When the soonest replica would give a request its first token; None if none can take it now."""
        model = self._models[name]
        _, candidates, cached = self._pool(model, blocks, (), regions)
        expected = min(model.answer_tokens, max_tokens)
        return soonest_first_token(prompt_tokens, expected, candidates, cached)

    @staticmethod
    def _pool(
        model: ModelTraffic, blocks: Sequence[int], exclude: Collection[ReplicaAddress], regions: Collection[str]
    ) -> tuple[list[Replica], list[Candidate], list[int]]:
        """The replicas that may serve a request; with each, its numbers and how many of the prompt's tokens it has."""
        replicas = list(model.replicas.values())
        if exclude:
            replicas = [replica for replica in replicas if replica.target not in exclude]
        if model.regions or regions:
            replicas = [one for one in replicas if may_serve(one.target.region, model.regions, regions)]
        held, size = model.prefixes.cached_blocks(blocks), model.block_size
        return replicas, [one.candidate() for one in replicas], [held[one.slot] * size for one in replicas]

    def observe_answer(self, name: ModelName, tokens: int) -> None:
        """An answer has ended: answers to come are expected to be like it."""
        model = self._models[name]
        model.answer_tokens += ANSWER_WEIGHT * (tokens - model.answer_tokens)

    async def close(self) -> None:
        """Let every replica go."""
        replicas = [replica for model in self._models.values() for replica in model.replicas.values()]
        await asyncio.gather(*(replica.stop() for replica in replicas), *self._retired, return_exceptions=True)

    def _update_replica(self, model: ModelTraffic, key: ReplicaKey, entry: control_pb2.DirectoryEntry) -> None:
        target = ReplicaAddress(key[1], entry.address, Epoch(entry.epoch), key[0])
        replica = model.replicas.get(key)
        if replica is not None and replica.target != target:
            # Rebuilt or moved: whatever the old epoch still says is not listened to.
            self._retire(model, key)
            replica = None
        if replica is None:
            replica = model.replicas[key] = self._connect(model, target, entry)
        replica.take_entry(entry)

    def _connect(self, model: ModelTraffic, target: ReplicaAddress, entry: control_pb2.DirectoryEntry) -> Replica:
        region = self._regions.get(target.region, UNKNOWN)
        dial = at_distance(self._dial, region.injected_round_trip) if region.injected_round_trip else self._dial
        replica = Replica(
            target=target,
            prefixes=model.prefixes,
            slot=model.prefixes.join(),
            block_size=model.block_size,
            batch_tokens=model.batch_tokens,
            load=entry.load,
            costs=costs_of(entry.coefficients),
        )
        connection = ReplicaConnection(
            target,
            self._router_id,
            self._clock,
            on_report=replica.take_report,
            on_change=replica.changed,
            stall_seconds=replica.stall_seconds,
            dial=dial,
            round_trip=RoundTrip(region.expected_round_trip),
            wants_block_events=region.is_home,
        )
        replica.start(connection)
        return replica

    def _retire(self, model: ModelTraffic, key: ReplicaKey) -> None:
        replica = model.replicas.pop(key)
        model.prefixes.leave(replica.slot)
        stopping = asyncio.create_task(replica.stop())
        self._retired.add(stopping)
        stopping.add_done_callback(self._retired.discard)

    def _reap(self) -> None:
        """Retire what the directory no longer offers once its last request has ended."""
        for model in self._models.values():
            for key, replica in list(model.replicas.items()):
                if not replica.is_listed and replica.connection.num_attempts == 0:
                    self._retire(model, key)
