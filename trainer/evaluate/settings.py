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
    """The first prompt: point (the pixel of the mask farthest from its boundary), box, or near-boundary."""
    rounds: int = 6
    """Prompts a mask: the first, then points where the mask is wrong."""
    output: Output = "oracle"
    """Which mask for a first point counts: oracle, of the three that SAM can give that of highest IoU with the human
    mask; single, the one that SAM gives if it is asked for one."""
    task_rounds: int = 1
    """Rounds in which the model is told the task."""
