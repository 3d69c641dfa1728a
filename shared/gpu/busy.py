"""How much of the time a device had work to do. Needs no torch, whose import takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Busy:
    """Of ``seconds`` that passed, those in which a device had work; ``by_stage``, which overlap between threads."""

    busy: float = 0.0
    seconds: float = 0.0
    by_stage: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of the time."""
        return min(1.0, self.busy / self.seconds) if self.seconds else 0.0

    def __add__(self, other: Busy) -> Busy:
        stages = {**self.by_stage, **other.by_stage}
        by_stage = {name: self.by_stage.get(name, 0.0) + other.by_stage.get(name, 0.0) for name in stages}
        return Busy(self.busy + other.busy, self.seconds + other.seconds, by_stage)
