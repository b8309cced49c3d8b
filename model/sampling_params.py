"""How one sequence's tokens are drawn: plain numbers, already validated. Knows no tensors and no requests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Every default is "no effect" except `temperature` (1: the model's own distribution). See inference.proto."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def filters_vocabulary(self) -> bool:
        """True if the whole row of logits is needed on one rank."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0
