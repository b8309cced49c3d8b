"""Which rank this is on which axis. Knows no torch and no processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """Sizes of the axes of one replica: `pp` stages of `tp` ranks each."""

    tp: int = 1
    pp: int = 1

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    def coordinates(self, world_rank: int) -> RankCoordinates:
        """World ranks count tensor ranks fastest: stage 0's ranks come first."""
        return RankCoordinates(stage=world_rank // self.tp, tp_rank=world_rank % self.tp)


@dataclass(frozen=True, slots=True)
class RankCoordinates:
    """Where one rank stands."""

    stage: int
    tp_rank: int
