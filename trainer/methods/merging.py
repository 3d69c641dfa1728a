"""Model merging (WiSE-FT, Wortsman et al., CVPR 2022): weights between SAM's and those of a run on human masks alone.

theta = (1 - alpha) theta_SAM + alpha theta_human
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from sum_factory.shared.errors import SettingsError
from sum_factory.trainer.methods.addition import Addition, Student
from sum_factory.trainer.run.settings import CHECKED
from sum_factory.trainer.variants import variants


@checked_dataclass(frozen=True, config=CHECKED)
class MergingSettings:
    """Settings of model merging."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Where between SAM and the run the weights lie that are written at its end: 0 is SAM, 1 is the run. `trainer
    merge` makes others of the last checkpoint."""


class Merging(Addition):
    """Keeps SAM's weights as the run found them, and ends between them and those that were trained."""

    settings: MergingSettings

    def __init__(self, student: Student, settings: MergingSettings) -> None:
        super().__init__(student, settings)
        name = student.recipe.variant
        if not variants()[name].saves_all_of_sam:
            raise SettingsError(
                f"model-merging is about weights that SAM itself has, and the variant {name} adds others: give the "
                "variant full or decoder"
            )
        self.start = {name: value.detach().cpu().clone() for name, value in student.sam.state_dict().items()}

    def final(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights in between."""
        return between(self.start, {name: weights[name].detach().cpu() for name in self.start}, self.settings.alpha)


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) start + alpha end, tensor by tensor; for 0 and 1 the very tensors of one of both."""
    if alpha in (0, 1):
        return dict(end if alpha else start)
    return {name: value.lerp(end[name], alpha) for name, value in start.items()}
