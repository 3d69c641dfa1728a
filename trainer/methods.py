"""The methods that are compared, as data. All run through the same code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PseudoLabels = Literal["none", "raw", "refined"]
TaskPromptRounds = Literal["none", "first", "all"]


@dataclass(frozen=True)
class Method:
    """What a method trains on, and what it does about uncertainty.

    ``pseudo_labels`` "refined" trains on the refiner's masks in place of SAM's. ``certain_loss`` weighs the losses by
    the certainty, ``certain_sampling`` the drawing of points; both on pseudo-labels only. ``uncertainty`` is the source
    of the maps; a shard set may hold several layers of one source.
    """

    pseudo_labels: PseudoLabels = "raw"
    certain_loss: bool = False
    certain_sampling: bool = False
    uncertainty: str = "refinement"
    task_prompt: TaskPromptRounds = "none"

    @property
    def needs_uncertainty(self) -> bool:
        """Whether the method reads an uncertainty layer; the refined masks lie in one too."""
        return self.certain_loss or self.certain_sampling or self.pseudo_labels == "refined"


METHODS = {
    "human-only": Method(pseudo_labels="none"),
    "vanilla": Method(),
    "mask-refinement": Method(pseudo_labels="refined"),
    "sum-no-task-prompt": Method(certain_loss=True, certain_sampling=True),
    "sum": Method(certain_loss=True, certain_sampling=True, task_prompt="first"),
    "sum-continuous-tp": Method(certain_loss=True, certain_sampling=True, task_prompt="all"),
    "sum-no-ua-sampling": Method(certain_loss=True, task_prompt="first"),
    "sum-confidence-uncer": Method(
        certain_loss=True, certain_sampling=True, task_prompt="first", uncertainty="confidence"
    ),
}
