"""How a set is evaluated. Nothing here needs torch: the command line shows it as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FirstPrompt = Literal["point", "box", "near-boundary"]
Output = Literal["oracle", "single"]


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated. The task prompt is given in the first ``task_rounds`` rounds: 1, or all for ablation."""

    first: FirstPrompt = "point"
    """First prompt: point (the pixel of the mask farthest from its boundary), box, or near-boundary (a pixel of the
    mask within 10 of its boundary, drawn at random)."""
    rounds: int = 6
    """Rounds a mask: the first prompt, then a click a round where the mask is wrong."""
    output: Output = "oracle"
    """Which output of a first point counts: oracle, of the three outputs the one of highest IoU with the human mask; or
    single, the output for prompts that leave no doubt."""
    task_rounds: int = 1
    """Rounds, from the first on, in which the model is told the task."""
