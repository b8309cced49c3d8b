"""From the replicas that a region has to those it shall have: which steps, in which order, and what each costs.

Pure: two sets of wanted replicas in, steps out. Nothing is started here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.config import ArgosyConfig, ModelSection
from cluster.control.plan import BYTES_PER_ELEMENT, WantedReplica, wanted_replicas
from cluster.cut import cut
from cluster.errors import ConfigurationError
from cluster.ids import ReplicaId
from cluster.launch import Dtype
from model.parallel.partition import PartitionError
from model.weights.tables import weight_bytes

Wanted = Mapping[ReplicaId, WantedReplica]

_DECIDED = ("device", "context_length")
"""What a region decides once where its configuration leaves it open; it stays so."""
_OPEN: dict[str, object] = {"device": "auto", "context_length": None}


class Action(enum.Enum):
    """What a step does with its replica."""

    START = "start"
    REPLACE = "replace"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Step:
    """A change to one replica."""

    action: Action
    replica_id: ReplicaId
    before: WantedReplica | None
    after: WantedReplica | None
    difference: str = ""
    """What is replaced by what."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that its ranks will read together."""
        if self.after is None:
            return 0
        section = self.after.section
        on_cuda: Dtype = "bfloat16" if section.device == "cuda" else "float32"
        dtype = on_cuda if section.dtype == "auto" else section.dtype
        shape, quantization = self.after.shape, section.quantization
        shards = cut(shape, self.after.dims, quantization, dtype)
        return sum(weight_bytes(shape, shard, BYTES_PER_ELEMENT[dtype], quantization) for shard in shards)

    @property
    def ranks(self) -> int:
        """Ranks that the replica will have."""
        return self.after.dims.world_size if self.after else 0


def wanted_after(config: ArgosyConfig, before: Wanted) -> dict[ReplicaId, WantedReplica]:
    """What a new configuration asks for; what it leaves open stays as the region decided it.

    Raises:
        ConfigurationError: a checkpoint is not there, or a model cannot be cut that way.
    """
    decided = {replica.section.name: replica.section for replica in before.values()}
    after = {}
    for wanted in wanted_replicas(config):
        section = _kept(wanted.section, decided.get(wanted.section.name))
        after[wanted.replica_id] = replace(wanted, section=section)
        try:
            cut(wanted.shape, wanted.dims, section.quantization)
        except PartitionError as error:
            raise ConfigurationError(f"model {section.name}: impossible: {error}") from None
    return after


def steps(before: Wanted, after: Wanted) -> list[Step]:
    """New replicas first, so that they take over; then replacements, one by one; then what is no longer wanted."""
    starts = [Step(Action.START, key, None, after[key]) for key in sorted(after.keys() - before.keys())]
    replaced = [
        Step(Action.REPLACE, key, before[key], after[key], difference)
        for key in sorted(before.keys() & after.keys())
        if (difference := _difference(before[key], after[key]))
    ]
    # The highest index first: ids of a model stay without gaps.
    stops = [Step(Action.STOP, key, before[key], None) for key in sorted(before.keys() - after.keys(), reverse=True)]
    return [*starts, *replaced, *stops]


def reverse(step: Step) -> Step:
    """The step that takes another one back."""
    opposite = {Action.START: Action.STOP, Action.STOP: Action.START, Action.REPLACE: Action.REPLACE}
    return Step(opposite[step.action], step.replica_id, step.after, step.before, "as before")


def _kept(section: ModelSection, decided: ModelSection | None) -> ModelSection:
    if decided is None:
        return section
    left_open = {key: getattr(decided, key) for key in _DECIDED if getattr(section, key) == _OPEN[key]}
    return section.model_copy(update=left_open)


def _difference(before: WantedReplica, after: WantedReplica) -> str:
    """What a replica must be built again for; empty if nothing."""
    old, new = before.section.model_dump(exclude={"replicas"}), after.section.model_dump(exclude={"replicas"})
    old["path"], new["path"] = before.directory, after.directory
    old_engine, new_engine = old.pop("engine"), new.pop("engine")
    old |= {f"engine.{key}": value for key, value in old_engine.items()}
    new |= {f"engine.{key}": value for key, value in new_engine.items()}
    changed = [key for key in new if old[key] != new[key]]
    return ", ".join(f"{key} {old[key]} -> {new[key]}" for key in changed)
