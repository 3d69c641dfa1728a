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
    rounds: int = 6
    output: Output = "oracle"
    task_rounds: int = 1
