"""What an entry of the table of methods says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sum_factory.trainer.methods.addition import Addition, Student
from sum_factory.trainer.run.settings import NoSettings

PseudoLabels = Literal["none", "raw", "refined"]
TaskPromptRounds = Literal["none", "first", "all"]


@dataclass(frozen=True)
class Method:
    """What a method trains on, what it does about uncertainty, and what it adds to a step.

    ``pseudo_labels`` "refined" trains on the refiner's masks in place of SAM's. ``loss_by_certainty`` weighs the losses
    by the certainty, ``sampling_by_certainty`` the drawing of points; both on pseudo-labels only. ``source`` is
    where the maps come from; a shard set may hold several layers of one source. ``addition`` makes what a method does
    beside that, of its ``settings``; ``reads_certainty``, ``reads_logits`` and ``reads_partners`` say what it needs of
    each sample: the certainty of labels although nothing is weighed by it, the logits of labels, and two other photos.
    What a step does may depend on how many steps there are in all (``reads_steps``): such a run cannot be given more of
    them later.
    """

    pseudo_labels: PseudoLabels = "raw"
    loss_by_certainty: bool = False
    sampling_by_certainty: bool = False
    source: str = "refinement"
    task_prompt: TaskPromptRounds = "none"
    addition: Callable[[Student, Any], Addition] = Addition
    settings: type[Any] = NoSettings
    reads_certainty: bool = False
    reads_logits: bool = False
    reads_partners: bool = False
    reads_steps: bool = False
    takes_points: bool = True
    """Whether masks may be compared in points of SAM's input (the target "points"): not where targets are made here."""
    copies: int = 0
    """How many copies of the weights it holds beside the model, such as a teacher."""

    @property
    def reads_pseudo_labels(self) -> bool:
        """Whether the method trains on photos without human masks, too."""
        return self.pseudo_labels != "none"

    @property
    def needs_uncertainty(self) -> bool:
        """Whether the method reads an uncertainty layer; the refined masks lie in one too."""
        weighed = self.loss_by_certainty or self.sampling_by_certainty or self.reads_certainty
        return weighed or self.pseudo_labels == "refined"
