"""How a set is evaluated. Nothing here needs torch: the command line shows it as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FirstPrompt = Literal["point", "box", "near-boundary", "squeezed-box"]
Output = Literal["oracle", "single", "hq", "hq+sam"]
SQUEEZED: FirstPrompt = "squeezed-box"
"""The prompt of HQ-SAM's own evaluation (``trainer.evaluation.hq_sam``)."""


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated. The task prompt is given in the first ``task_rounds`` rounds: 1, or all for ablation."""

    first: FirstPrompt = "point"
    """First prompt: point (the pixel of the mask farthest from its boundary), box, or near-boundary (a pixel of the
    mask within 10 of its boundary, drawn at random); or squeezed-box, the box of HQ-SAM's own evaluation, which has one
    round and one mask per photo."""
    rounds: int = 6
    """Rounds per mask: the first prompt, then a click per round where the mask is wrong."""
    output: Output = "oracle"
    """Which output of a first point counts: oracle, of the three outputs the one of highest IoU with the human mask; or
    single, the output for prompts that leave no doubt. hq and hq+sam tell which the one output of HQ-SAM is."""
    task_rounds: int = 1
    """Rounds, from the first on, in which the model is told the task."""

    def __post_init__(self) -> None:
        if self.first == SQUEEZED and (self.rounds != 1 or self.output == "oracle"):
            raise ValueError(f"{SQUEEZED}: expected 1 round of one output, found {self.rounds} of {self.output}")
