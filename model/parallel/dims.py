"""Which rank this is on which axis. Knows no torch and no processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """Sizes of the axes of one replica: `pp` stages of `tp` ranks each.

    The expert axis lies inside the tensor axis: experts are dealt to `ep` groups of `tp / ep` neighbouring ranks, which
    share each of their experts, while all `tp` ranks share the attention.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    @property
    def expert_group_size(self) -> int:
        """Ranks that share an expert."""
        return self.tp // self.ep

    def coordinates(self, world_rank: int) -> RankCoordinates:
        """World ranks count tensor ranks fastest: stage 0's ranks come first."""
        return RankCoordinates(stage=world_rank // self.tp, tp_rank=world_rank % self.tp)


@dataclass(frozen=True, slots=True)
class RankCoordinates:
    """Where one rank stands."""

    stage: int
    tp_rank: int
