"""What recipes of any training say of its checkpoints and of evaluation meanwhile."""

from __future__ import annotations

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from sum_factory.trainer.data.sets import SetSettings

MOST_STEPS, MOST = 10**9, 10**6
"""Steps of a run, and photos, masks or files of anything in it, at most: what is beyond is a slip, or no number."""
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=CHECKED)
class NoSettings:
    """Of a variant or a method that has none."""


@dataclass(frozen=True, config=CHECKED)
class CheckpointSettings:
    """A checkpoint every so many steps; the last ``keep`` are kept, and the best."""

    every: int = Field(default=500, ge=1, le=MOST_STEPS)
    """Steps from one checkpoint to the next. The last step leaves one, too, and so does every evaluation."""
    keep: int = Field(default=2, ge=1, le=MOST)
    """Latest checkpoints that stay on disk, beside the best. Each has the weights and the moments of the optimizer."""


@dataclass(frozen=True, config=CHECKED)
class ValidationSettings:
    """Evaluation while training, which decides which checkpoint is the best: mean boundary IoU over the sets after
    ``rounds`` prompts from a first point."""

    sets: tuple[SetSettings, ...] = Field(min_length=1)
    """Sets of photos with human masks to evaluate on. Give others than those that are trained on."""
    every: int = Field(default=500, ge=1, le=MOST_STEPS)
    """Steps from one evaluation to the next. Evaluation takes time from training: on large sets give more steps."""
    rounds: int = Field(default=3, ge=1, le=9)
    """Prompts a mask: a first point, then clicks where the mask is wrong. The masks of the last round are scored."""
    max_masks: int = Field(default=10, ge=1, le=MOST)
    """Masks of a photo, at most; of more, so many are drawn, always the same."""
    automatic: int = Field(default=4, ge=0, le=MOST)
    """Photos of all sets together of which automatic masks are made when the run is over, by the SAM that it began with
    and by what came of it, on a coarse grid of points; it is said if masks have fallen by half. 0 leaves this out."""
